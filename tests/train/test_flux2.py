"""FLUX.2 [klein] on a tiny model: a step against float64, and sliders from the command line to diffusers."""

import copy

import numpy as np
import pytest
import torch
from experiments import FOLDERS, make_trainer
from networks import gathered_gradients, randomize
from PIL import Image
from sliders.models.flux2.narrow import build_narrow_klein

PROMPTS = [{"target": "a disc", "positive": "a bright disc", "neutral": "", "resolution": 64, "batch_size": 2}]
FULL = {"training_method": "full"}
RUN = "probe_klein_alpha2.0_rank4_full"
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
JOINED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}


class NaiveKlein:
    """A pipeline in float64 with a LoRA on its own, separate layers, by formulas alone."""

    def __init__(self, paths=(), downs=(), ups=(), gain=0.5):
        self.pipe, self.gain, self.multiplier = build_narrow_klein(), gain, 0.0
        self.transformer = copy.deepcopy(self.pipe.transformer).double()
        self.downs = {p: d.detach().double().clone().requires_grad_() for p, d in zip(paths, downs, strict=True)}
        self.ups = {p: u.detach().double().clone().requires_grad_() for p, u in zip(paths, ups, strict=True)}
        for path in paths:
            attention, _, name = path.rpartition(".")
            layers = JOINED.get(name, (name,))
            for number, layer in enumerate(layers):
                hook = self.hook(path, number, len(layers))
                self.transformer.get_submodule(f"{attention}.{layer}").register_forward_hook(hook)

    def hook(self, path, number, count):
        def add(layer, inputs, output):
            up = self.ups[path].chunk(count)[number]
            return output + self.gain * self.multiplier * (inputs[0] @ self.downs[path].T @ up.T)

        return add

    @torch.no_grad()
    def tokens(self, prompt):
        tokenizer = self.pipe.tokenizer
        ids = tokenizer(TEMPLATE.format(prompt)).input_ids
        mask = torch.tensor([[1] * len(ids) + [0] * (512 - len(ids))])
        ids = torch.tensor([ids + [tokenizer.pad_token_id] * (512 - len(ids))])
        states = self.pipe.text_encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return torch.cat([states[layer] for layer in (9, 18, 27)], -1).double()

    @torch.no_grad()
    def latents(self, path):
        """[4, 32, h, w]: the four places of a patch apart."""
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1
        vae = self.pipe.vae
        mode = vae.encode(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())).latent_dist.mode()[0].double()
        parts = []
        for row in (0, 1):
            for column in (0, 1):
                channels = torch.arange(32) * 4 + row * 2 + column
                mean, var = (s.double()[channels, None, None] for s in (vae.bn.running_mean, vae.bn.running_var))
                parts.append((mode[:, row::2, column::2] - mean) / (var + 1e-4).sqrt())
        return torch.stack(parts, 1).flatten(0, 1)

    def velocity(self, noisy, s, tokens):
        """noisy [128, h, w] → [128, h, w]"""
        _, height, width = noisy.shape
        places = [[0, row, column, 0] for row in range(height) for column in range(width)]
        output = self.transformer(
            hidden_states=torch.stack([noisy[:, row, column] for _, row, column, _ in places])[None],
            encoder_hidden_states=tokens,
            timestep=torch.tensor([s], dtype=torch.float64),
            img_ids=torch.tensor(places),
            txt_ids=torch.tensor([[0, 0, 0, index] for index in range(512)]),
        ).sample[0]
        found = torch.empty_like(noisy)
        for token, (_, row, column, _) in zip(output, places, strict=True):
            found[:, row, column] = token
        return found


def test_a_step_equals_a_naive_one_in_float64(tmp_path):
    trainer = make_trainer(tmp_path, family="flux2", size=(128, 32), prompts=PROMPTS, network=FULL)
    network, data = trainer.network, trainer.data
    randomize(network)
    assert len(network.adaptors) == 12
    naive = NaiveKlein(network.module_paths, [a.down for a in network.adaptors], [a.up for a in network.adaptors])
    draw = trainer.step.draw(0)
    assert len(draw.rows) == 4
    losses = []
    for row in draw.rows:
        image = naive.latents(trainer.settings.data.folder_main / FOLDERS[row.folder] / f"{data.names[row.image]}.png")
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(row.noise_seed)).double()
        s = (row.timestep + 1) / 1000
        naive.multiplier = row.scale
        found = naive.velocity((1 - s) * image + s * noise, s, naive.tokens("a bright disc" if row.positive else ""))
        losses.append((found - (noise - image)).square().mean())
    wanted = 2 * torch.stack(losses).mean()
    wanted.backward()
    loss = trainer.step.loss_of(trainer.step.make_batch(draw))
    loss.backward()
    print("loss", loss.item(), "relative error", abs(loss.item() / wanted.item() - 1))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    found = gathered_gradients(trainer)
    errors = []
    for i, path in enumerate(network.module_paths):
        for part, exact in (("down", naive.downs[path].grad), ("up", naive.ups[path].grad)):
            errors.append(((found[f"adaptors.{i}.{part}"].double() - exact).norm() / exact.norm()).item())
    print("largest relative error of a gradient", max(errors))
    assert max(errors) < 1e-4
