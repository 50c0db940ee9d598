"""FLUX.2 [klein] on a tiny model: a step against float64, and sliders from the command line to diffusers."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import make_scale_folders, script_main, write_experiment
from experiments import FOLDERS, make_trainer, sample_argv
from networks import gathered_gradients, randomize
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.families import KLEIN
from sliders.config.schema import Network, PretrainedModel
from sliders.formats.slider_file import open_slider
from sliders.models.flux2.family import KLEIN_FAMILY
from sliders.models.flux2.model import Klein
from sliders.models.flux2.narrow import build_narrow_klein
from sliders.sample.sampling import Row, Sampling, sample

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
        """noisy [128, h, w] → [128, h, w]. Times are float32, as in diffusers' pipeline: the model takes sines of 1000 times as much."""
        _, height, width = noisy.shape
        places = [[0, row, column, 0] for row in range(height) for column in range(width)]
        output = self.transformer(
            hidden_states=torch.stack([noisy[:, row, column] for _, row, column, _ in places])[None],
            encoder_hidden_states=tokens,
            timestep=torch.tensor([s], dtype=torch.float32).double(),
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
    assert max(errors) < 1e-5


# --- from the command line to other programs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Slider file of six steps through the real script, with a preview, stopped after three and resumed."""
    root = tmp_path_factory.mktemp("trained")
    data = make_scale_folders(root / "data", folders=("low", "base", "high"))
    flags = ["--folders", "low, base, high", "--scales", "-1, 0.5, 1", "--lr", "0.02"]
    argv = write_experiment(
        root, flags=flags, data=data, network=FULL, save={"per_steps": 3}, preview={"prompts": ["a"], "steps": 2},
        prompts=[{"target": "a disc", "resolution": 64, "guidance_scale": 4}],
    )  # fmt: skip
    main = script_main("train_lora-scale-flux2")
    assert main([*argv, "--dry_run"]) == 0
    assert not (root / "models").exists()
    assert main([*argv, "--iterations", "3"]) == 0
    assert main([*argv, "--iterations", "6", "--resume"]) == 0
    return root / "models" / RUN / f"{RUN}_last.safetensors"


def test_programs_are_told_which_model_it_is_for(trained):
    with safe_open(trained, framework="pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert metadata["ss_base_model_version"] == "flux2_klein_4b"
    assert metadata["modelspec.architecture"] == "Flux.2-klein-4b/lora"
    assert "modelspec.prediction_type" not in metadata
    assert "klein" in trained.stem
    layers = ("double_blocks_0_img_attn_qkv", "double_blocks_0_txt_mlp_2", "single_blocks_1_linear1")
    assert {
        f"lora_unet_{layer}.{part}" for layer in layers for part in ("lora_down.weight", "lora_up.weight", "alpha")
    } <= keys
    assert len(keys) == 12 * 3
    assert json.loads(trained.with_suffix(".json").read_text(encoding="utf-8"))["sd version"] == "Unknown"
    assert Image.open(trained.with_suffix(".preview.png")).width > 64


def test_six_steps_equal_three_and_three_after_a_resume(trained, tmp_path):
    root = trained.parents[2]
    config = (root / "config.yaml").read_text(encoding="utf-8").replace(str(root / "models"), str(tmp_path / "models"))
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    argv = ["--config_file", str(tmp_path / "config.yaml"), "--folder_main", str(root / "data"), "--device", "cpu"]
    argv += ["--folders", "low, base, high", "--scales", "-1, 0.5, 1", "--lr", "0.02", "--iterations", "6"]
    assert script_main("train_lora-scale-flux2")(argv) == 0
    again, first = load_file(tmp_path / "models" / RUN / trained.name), load_file(trained)
    assert all(torch.equal(again[key], first[key]) for key in first)


def picture(pipe, embeds, noise, guidance, steps=3):
    return torch.from_numpy(
        pipe(
            prompt_embeds=embeds["a disc"].tokens[None], negative_prompt_embeds=embeds[""].tokens[None],
            num_inference_steps=steps, guidance_scale=guidance, width=64, height=48, latents=noise, output_type="np",
        ).images[0].transpose(2, 0, 1)
    )  # fmt: skip


@pytest.mark.parametrize("distilled", [False, True])
def test_sampled_pictures_equal_those_of_diffusers_with_the_slider_loaded_there(trained, distilled):
    """diffusers attaches its own LoRA to separate projections. A distilled model is sampled without guidance."""
    pipe = build_narrow_klein(distilled=distilled)
    model = Klein(KLEIN, build_narrow_klein(distilled=distilled), "tiny")
    embeds = model.encode_prompts(["a disc", ""], "cpu")
    network = open_slider(trained, model.denoiser, KLEIN_FAMILY)
    pipe.load_lora_weights(str(trained.parent), weight_name=trained.name, adapter_name="slider")
    noise = torch.randn(model.facts.latent_shape(48, 64), generator=torch.Generator().manual_seed(1))[None]
    base = picture(build_narrow_klein(distilled=distilled), embeds, noise, 4.0)
    multipliers = (-1.0, 0.0, 0.67, 2.0)
    rows = [Row(embeds["a disc"], 1, (m,)) for m in multipliers]
    made = list(sample(model, [network], rows, embeds[""], Sampling(64, 48, 3, 4.0)))
    errors, changes = [], []
    for multiplier, ours in zip(multipliers, made, strict=True):
        pipe.set_adapters(["slider"], [multiplier])
        errors.append((ours - picture(pipe, embeds, noise, 4.0)).abs().max().item())
        changes.append((ours - base).abs().max().item())
    print("largest errors", errors, "largest changes", changes)
    assert max(errors) < 1e-5
    assert changes[1] < 1e-5 and min(changes[0], changes[3]) > 1e-3


@pytest.mark.parametrize("spelling", ["diffusion_model.", "transformer.", "lora_unet_"])
def test_conversion_restores_the_slider(trained, tmp_path, spelling):
    """From files without metadata: AI Toolkit's, PEFT's of a model with joined projections, Musubi Tuner's."""
    with torch.device("meta"):
        network = AdaptorNetwork(KLEIN_FAMILY.weightless_denoiser("tiny"), Network(type="c3lier", rank=4))
    tensors = {}
    for path in network.module_paths:
        _, dotted, original = KLEIN_FAMILY.spellings(path)
        name = {"diffusion_model.": spelling + original, "transformer.": dotted}.get(
            spelling, KLEIN_FAMILY.file_key(path)
        )
        for part, other in (("lora_down", "lora_A"), ("lora_up", "lora_B")):
            tensor = load_file(trained)[f"{KLEIN_FAMILY.file_key(path)}.{part}.weight"]
            tensors[f"{name}.{part if spelling == 'lora_unet_' else other}.weight"] = tensor
    save_file(tensors, tmp_path / "old.safetensors")
    flags = ["--family", "klein", "--model", "tiny", "--alpha", "2"]
    assert script_main("convert_slider")([str(tmp_path / "old.safetensors"), *flags]) == 0
    out = tmp_path / "old_converted.safetensors"
    found, wanted = load_file(out), load_file(trained)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    open_slider(out, KLEIN_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32).denoiser, KLEIN_FAMILY)


def test_sliders_of_other_families_are_not_sampled(trained, tmp_path, capsys):
    argv = sample_argv(trained, tmp_path / "o")
    assert script_main("sample_slider-xl")(argv) == 2
    assert "not SDXL: choose a LoRA for SDXL" in capsys.readouterr().err


def test_the_sample_command_makes_pictures_and_a_card(trained, tmp_path):
    main, data = script_main("sample_slider-flux2"), trained.parents[2] / "data"
    assert main(sample_argv(trained, tmp_path / "o", "--card", str(data))) == 0
    assert len(list((tmp_path / "o").glob("01_seed1_x*.png"))) > 3
    assert "sliders.card" in safe_open(trained, framework="pt").metadata()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sampler", "ddim"], "--sampler: ddim cannot sample from FLUX.2 [klein] 4B"),
        (["--clip_skip", "1"], "--clip_skip: 1 is for CLIP"),
        (["--width", "72"], "--width: 72 is not a multiple of 16: use 64."),
    ],
)
def test_flags_of_other_families_are_refused(trained, tmp_path, capsys, flags, said):
    assert script_main("sample_slider-flux2")(sample_argv(trained, tmp_path / "o", *flags)) == 2
    assert said in capsys.readouterr().err


def test_the_plan_says_what_a_choice_of_layers_means(tmp_path, capsys):
    argv = write_experiment(tmp_path, network={"type": "lierla", "training_method": "noxattn"})
    assert script_main("train_lora-scale-flux2")([*argv, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "layers  6 of lierla noxattn" in out
    assert "lierla also adapts the feed-forward parts of the single blocks" in out
    assert "save.name is probe_klein, because some programs know" in out
    argv = write_experiment(tmp_path, network={"training_method": "selfattn"})
    assert script_main("train_lora-scale-flux2")([*argv, "--dry_run"]) == 2
    assert "image and prompt are read by the same attention layers: use full or noxattn." in capsys.readouterr().err
