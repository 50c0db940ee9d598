"""Stable Diffusion 1 and 2 on tiny models: a step against float64, and sliders from the command line to diffusers."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import make_scale_folders, script_main, write_experiment
from diffusers import StableDiffusionPipeline
from experiments import FOLDERS, make_trainer, sample_argv
from naive import NaiveLora
from networks import gathered_gradients, randomize
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.patches import Patches
from sliders.compute.quantization import ByteLinear, quantize
from sliders.config.schema import Network, PretrainedModel
from sliders.fast.blocks import fuse_blocks
from sliders.formats.slider_file import open_slider
from sliders.models.diffusers_unet.architecture import UNET
from sliders.models.sd.family import SD1_FAMILY, SD2_FAMILY
from sliders.models.sd.narrow import build_narrow_sd

VERSIONS = {"sd1": False, "sd2": True}
PROMPTS = [{"target": "a disc", "positive": "a bright disc", "neutral": "", "resolution": 128, "batch_size": 2}]
RUN = "probe_alpha2.0_rank4_full"
FULL = {"training_method": "full"}


# --- a step


class NaiveStep:
    """Loss and gradients of one step in float64, one row after the other, from pipeline and formulas alone."""

    def __init__(self, trainer, v2):
        self.pipe, self.v2, self.trainer = build_narrow_sd(v2=v2), v2, trainer
        self.unet = copy.deepcopy(self.pipe.unet).double()
        adaptors, network = trainer.network.adaptors, trainer.network
        self.lora = NaiveLora(
            self.unet, network.module_paths, [a.down for a in adaptors], [a.up for a in adaptors], 2.0
        )
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)

    @torch.no_grad()
    def tokens(self, prompt):
        ids = self.pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return self.pipe.text_encoder(ids).last_hidden_state.double()

    @torch.no_grad()
    def latents(self, path, eps):
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1
        posterior = self.pipe.vae.encode(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())).latent_dist
        return ((posterior.mean + posterior.std * eps) * 0.18215).double()

    def row(self, row):
        generator = torch.Generator().manual_seed(row.noise_seed)
        noise, eps = (torch.randn(1, 4, 16, 16, generator=generator) for _ in range(2))
        noise = noise.double()
        data = self.trainer.settings.data
        x = self.latents(data.folder_main / FOLDERS[row.folder] / f"{self.trainer.data.names[row.image]}.png", eps)
        alpha, sigma = self.alphas_cumprod[row.timestep].sqrt(), (1 - self.alphas_cumprod[row.timestep]).sqrt()
        self.lora.multiplier = row.scale
        prompt = "a bright disc" if row.positive else ""
        found = self.unet(alpha * x + sigma * noise, row.timestep, encoder_hidden_states=self.tokens(prompt)).sample
        return (found - (alpha * noise - sigma * x if self.v2 else noise)).square().mean()

    def loss(self, draw):
        """The sum over both ends of a pair, averaged over pairs."""
        loss = 2 * torch.stack([self.row(row) for row in draw.rows]).mean()
        loss.backward()
        return loss.item()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_step_equals_a_naive_one_in_float64(tmp_path, version):
    v2 = VERSIONS[version]
    how = {"prompts": PROMPTS, "network": FULL, "pretrained_model": {"v2": v2}}
    trainer = make_trainer(tmp_path, family="sd", size=(128, 128), **how)
    randomize(trainer.network)
    assert len(trainer.network.adaptors) == 214
    naive = NaiveStep(trainer, v2)
    draw = trainer.step.draw(0)
    assert len(draw.rows) == 4
    wanted = naive.loss(draw)
    loss = trainer.step.loss_of(trainer.step.make_batch(draw))
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    found = gathered_gradients(trainer)
    for i, path in enumerate(trainer.network.module_paths):
        for part, exact in (("down", naive.lora.downs[path].grad), ("up", naive.lora.ups[path].grad)):
            assert (found[f"adaptors.{i}.{part}"].double() - exact).norm() < 2e-4 * exact.norm(), path


# --- from the command line to other programs


@pytest.fixture(scope="module", params=VERSIONS)
def trained(request, tmp_path_factory):
    """(v2, slider file) of six steps through the real script, with a preview, stopped after three and resumed."""
    v2, root = VERSIONS[request.param], tmp_path_factory.mktemp("trained")
    data = make_scale_folders(root / "data", folders=("low", "base", "high"))
    flags = ["--folders", "low, base, high", "--scales", "-1, 0.5, 1", "--lr", "0.02"]
    argv = write_experiment(
        root, flags=flags, data=data, network=FULL, save={"per_steps": 3}, preview={"prompts": ["a"], "steps": 2},
        pretrained_model={"v2": v2}, prompts=[{"target": "a disc", "resolution": 64, "guidance_scale": 7}],
    )  # fmt: skip
    main = script_main("train_lora-scale")
    assert main([*argv, "--dry_run"]) == 0
    assert not (root / "models").exists()
    assert main([*argv, "--iterations", "3"]) == 0
    assert main([*argv, "--iterations", "6", "--resume"]) == 0
    return v2, root / "models" / RUN / f"{RUN}_last.safetensors"


def unet_output(pipe):
    generator = torch.Generator().manual_seed(3)
    sample, tokens = (torch.randn(shape, generator=generator) for shape in ((1, 4, 16, 16), (1, 77, 32)))
    with torch.no_grad():
        return pipe.unet(sample, torch.tensor([500]), encoder_hidden_states=tokens).sample


def test_web_uis_are_told_which_stable_diffusion_it_is(trained):
    """A1111: ss_v2. Forge and model managers: modelspec. The card: `sd version`. Values as kohya's scripts write them."""
    v2, path = trained
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    found = tuple(
        metadata[key]
        for key in ("ss_v2", "ss_base_model_version", "modelspec.architecture", "modelspec.prediction_type")
    )
    sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if v2:
        assert found == ("True", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "v")
    else:
        assert found == ("False", "sd_v1", "stable-diffusion-v1/lora", "epsilon")
    assert sidecar["sd version"] == ("SD2" if v2 else "SD1")
    assert metadata["modelspec.implementation"] == "diffusers"
    assert metadata["ss_steps"] == "6"
    assert Image.open(path.with_suffix(".preview.png")).width > 64


def test_diffusers_reproduces_the_trained_network(trained):
    v2, path = trained
    pipe, ours = build_narrow_sd(v2=v2), build_narrow_sd(v2=v2)
    base = unet_output(pipe)
    network = open_slider(path, ours.unet, SD2_FAMILY if v2 else SD1_FAMILY)
    assert isinstance(pipe, StableDiffusionPipeline)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="slider")
    for multiplier in (-1.0, 0.0, 0.67, 2.0):
        network.set_multipliers(torch.tensor([multiplier]))
        pipe.set_adapters(["slider"], [multiplier])
        assert (unet_output(pipe) - unet_output(ours)).abs().max() < 1e-5
        if multiplier:
            assert (unet_output(ours) - base).abs().max() > 1e-4


def version(v2):
    return ["--v2"] if v2 else []


def test_the_sample_command_makes_the_pictures_of_diffusers(trained, tmp_path):
    v2, path = trained
    flags = ("--multipliers", "0, 0.8", "--guidance", "7", "--negative", "blurred", "--clip_skip", "1")
    assert script_main("sample_slider")(sample_argv(path, tmp_path / "o", *version(v2), *flags)) == 0
    family = SD2_FAMILY if v2 else SD1_FAMILY
    pipe = family.load(PretrainedModel(name_or_path="tiny", v2=v2), torch.float32).pipe
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="slider")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    skipping = family.load(PretrainedModel(name_or_path="tiny", v2=v2, clip_skip=1), torch.float32)
    embeds = skipping.encode_prompts(["a disc", "blurred"], "cpu")
    for multiplier in ("0", "0.8"):
        pipe.set_adapters(["slider"], [float(multiplier)])
        wanted = pipe(
            prompt_embeds=embeds["a disc"].tokens[None], negative_prompt_embeds=embeds["blurred"].tokens[None],
            num_inference_steps=3, guidance_scale=7, width=64, height=64, latents=noise, output_type="np",
        ).images[0]  # fmt: skip
        picture = Image.open(tmp_path / "o" / f"01_seed1_x{multiplier}.png")
        assert np.abs(np.asarray(picture, dtype=float) / 255 - wanted).max() < 0.01
        assert "Clip skip: 2" in picture.text["parameters"]  # A1111 counts SD's last layer as 1


def test_sliders_of_other_versions_and_families_are_not_sampled(trained, tmp_path, capsys):
    """SD 1's and SD 2's layers have the same names, and without cross-attention the same sizes."""
    v2, path = trained
    assert script_main("sample_slider")(sample_argv(path, tmp_path / "o", *version(not v2))) == 2
    assert f"another version than Stable Diffusion {1 if v2 else 2}" in capsys.readouterr().err
    assert script_main("sample_slider-xl")(sample_argv(path, tmp_path / "o")) == 2
    assert f"is for Stable Diffusion {2 if v2 else 1}, not SDXL: choose" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("spelling", ["diffusers", "original"])
def test_conversion_restores_the_slider(trained, tmp_path, spelling):
    """From files without metadata, in diffusers' names as the original trainers write them, or the checkpoint's."""
    v2, path = trained
    family = SD2_FAMILY if v2 else SD1_FAMILY
    tensors = load_file(path)
    if spelling == "original":
        names = {family.file_key(p): f"lora_unet_{family.spellings(p)[1].replace('.', '_')}" for p in paths(v2)}
        tensors = {f"{names[key.split('.', 1)[0]]}.{key.split('.', 1)[1]}": t for key, t in tensors.items()}
    save_file(tensors, tmp_path / "old.safetensors")
    flags = ["--family", "sd2" if v2 else "sd1", "--model", "tiny"]
    assert script_main("convert_slider")([str(tmp_path / "old.safetensors"), *flags]) == 0
    out = tmp_path / "old_converted.safetensors"
    found, wanted = load_file(out), load_file(path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["ss_v2"] == str(v2)
    open_slider(out, build_narrow_sd(v2=v2).unet, family).remove()


def paths(v2):
    with torch.device("meta"):
        return AdaptorNetwork(build_narrow_sd(v2=v2).unet, Network(type="c3lier")).module_paths


def test_a_checkpoint_of_one_version_is_not_resumed_as_the_other(trained, tmp_path, capsys):
    v2, path = trained
    root, was, now = path.parents[2], str(v2).lower(), str(not v2).lower()
    config = (root / "config.yaml").read_text(encoding="utf-8").replace(f"v2: {was}", f"v2: {now}")
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    argv = ["--config_file", str(tmp_path / "config.yaml"), "--folder_main", str(root / "data"), "--device", "cpu"]
    argv += ["--folders", "low, base, high", "--scales", "-1, 0.5, 1", "--lr", "0.02", "--iterations", "6", "--resume"]
    assert script_main("train_lora-scale")(argv) == 2
    assert f"pretrained_model.v2 was {was} and is now {now}" in capsys.readouterr().err


# --- options of the UNet


@pytest.mark.skipif(torch.cuda.is_available(), reason="tested in test_gpu.py")
def test_fused_transformers_that_project_with_convolutions_compute_the_same():
    """SDXL's and SD 2's project with linear layers, and are tested with the kernels. Of three blocks, two are checkpointed at once."""
    block = build_narrow_sd().unet.down_blocks[1].attentions[0].to(memory_format=torch.channels_last)
    assert isinstance(block.proj_in, torch.nn.Conv2d)
    block.transformer_blocks.extend(copy.deepcopy(block.transformer_blocks[0]) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    image, tokens = (torch.randn(shape, generator=generator) for shape in ((2, 32, 4, 6), (2, 7, 32)))
    results, calls = [], []
    block.transformer_blocks[0].ff.register_forward_pre_hook(lambda *_: calls.append(len(results)))
    fuse = partial(fuse_blocks, patches=Patches())
    for change in (lambda block: None, fuse, lambda block: block.enable_gradient_checkpointing()):
        change(block)
        x = image.to(memory_format=torch.channels_last).requires_grad_()
        output = block(x, tokens).sample
        results.append((output.detach(), *torch.autograd.grad(output.square().sum(), (x, block.proj_in.weight))))
    assert "forward" in block.__dict__
    assert calls == [0, 1, 2, 2], "only checkpointing computes it again"
    for plain, *others in zip(*results, strict=True):
        assert all((other - plain).norm() <= 1e-5 * plain.norm() for other in others)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_quantised_model_computes_nearly_the_same(kind):
    pipe = build_narrow_sd()
    wanted = unet_output(pipe)
    quantize(pipe.unet, kind, "cpu", torch.float32, UNET.quantized)
    assert sum(isinstance(m, ByteLinear) for m in pipe.unet.modules()) == 16 * 10  # 8 of attention, 2 of feed-forward
    assert (unet_output(pipe) - wanted).norm() < 0.05 * wanted.norm()
