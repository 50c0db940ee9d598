"""Z-Image on a tiny model: a step against float64, and sliders from the command line to diffusers."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import make_scale_folders, script_main, write_experiment
from diffusers import ZImageTransformer2DModel
from experiments import FOLDERS, make_trainer, sample_argv
from networks import gathered_gradients, randomize
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.families import ZIMAGE
from sliders.config.schema import Network, PretrainedModel
from sliders.formats.slider_file import open_slider, save_slider, slider_tensors
from sliders.models.zimage.family import ZIMAGE_FAMILY
from sliders.models.zimage.model import ZImage
from sliders.models.zimage.narrow import build_narrow_zimage
from sliders.sample.sampling import Row, Sampling, sample

LONG = "a bright disc on a table, seen from above, in the light of a window"
PROMPTS = [{"target": "a disc", "positive": LONG, "neutral": "", "resolution": 64, "batch_size": 2}]
FULL = {"training_method": "full"}
RUN = "probe_zimage_alpha3.0_rank4_full"
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


class NaiveZImage:
    """diffusers' pipeline in float64, row by row, with a LoRA by formulas alone."""

    def __init__(self, paths=(), downs=(), ups=(), gain=0.5):
        self.pipe, self.gain, self.multiplier = build_narrow_zimage(), gain, 0.0
        self.transformer = copy.deepcopy(self.pipe.transformer).double()
        assert type(self.transformer) is ZImageTransformer2DModel
        self.downs = {p: d.detach().double().clone().requires_grad_() for p, d in zip(paths, downs, strict=True)}
        self.ups = {p: u.detach().double().clone().requires_grad_() for p, u in zip(paths, ups, strict=True)}
        for path in paths:
            self.transformer.get_submodule(path).register_forward_hook(self.hook(path))

    def hook(self, path):
        def add(layer, inputs, output):
            return output + self.gain * self.multiplier * (inputs[0] @ self.downs[path].T @ self.ups[path].T)

        return add

    @torch.no_grad()
    def tokens(self, prompt):
        """[n, C]: without padding."""
        ids = torch.tensor([self.pipe.tokenizer(TEMPLATE.format(prompt)).input_ids])
        return self.pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2][0].double()

    @torch.no_grad()
    def latents(self, path):
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1
        pixels = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
        return (self.pipe.vae.encode(pixels).latent_dist.mode()[0].double() - 0.1159) * 0.3611

    def velocity(self, noisy, s, tokens):
        """noisy [16, h, w] → ε − x₀ [16, h, w]. The model's output is its negative, its time 1 − s.

        Times are float32, as in diffusers' pipeline: the model takes sines of 1000 times as much, so that their rounding
        alone would make 2e-5 of a gradient.
        """
        time = (1 - torch.tensor([s], dtype=torch.float32)).double()
        return -self.transformer([noisy[:, None]], time, [tokens]).sample[0][:, 0]


def test_a_step_equals_a_naive_one_in_float64(tmp_path):
    """With a prompt of two multiples of 32 tokens and one of one in the batch, and patches that do not fill a multiple."""
    trainer = make_trainer(tmp_path, family="zimage", size=(128, 32), prompts=PROMPTS, network=FULL)
    network, data = trainer.network, trainer.data
    randomize(network)
    assert len(network.adaptors) == 14
    naive = NaiveZImage(network.module_paths, [a.down for a in network.adaptors], [a.up for a in network.adaptors])
    draws = map(trainer.step.draw, range(20))
    draw = next(draw for draw in draws if len({row.positive for row in draw.rows}) == 2)
    batch = trainer.step.make_batch(draw)
    assert batch.conditioning["tokens"].shape[1] == 96 and not batch.conditioning["attended"].all()
    losses = []
    for row in draw.rows:
        image = naive.latents(trainer.settings.data.folder_main / FOLDERS[row.folder] / f"{data.names[row.image]}.png")
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(row.noise_seed)).double()
        s = (row.timestep + 1) / 1000
        naive.multiplier = row.scale
        found = naive.velocity((1 - s) * image + s * noise, s, naive.tokens(LONG if row.positive else ""))
        losses.append((found - (noise - image)).square().mean())
    assert image.shape[1] * image.shape[2] // 4 % 32
    wanted = 2 * torch.stack(losses).mean()
    wanted.backward()
    loss = trainer.step.loss_of(batch)
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


def test_prompts_of_two_lengths_in_a_batch_equal_each_alone():
    model = ZImage(ZIMAGE, build_narrow_zimage(), "tiny")
    embeds = list(model.encode_prompts([LONG, ""], "cpu").values())
    noisy = torch.randn((2, 16, 10, 6), generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([300, 800])
    with torch.no_grad():
        both = model.denoise(noisy, timesteps, model.conditioning(embeds, []))
        for row in (0, 1):
            one = slice(row, row + 1)
            alone = model.denoise(noisy[one], timesteps[one], model.conditioning(embeds[one], []))
            print("error", (both[one] - alone).abs().max().item())
            assert (both[one] - alone).abs().max() < 1e-5


# --- from the command line to other programs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Slider file of six steps through the real script, with a preview, stopped after three and resumed."""
    root = tmp_path_factory.mktemp("trained")
    data = make_scale_folders(root / "data", folders=("low", "base", "high"))
    flags = ["--folders", "low, base, high", "--scales", "-1, 0.5, 1", "--lr", "0.02"]
    argv = write_experiment(
        root, flags=flags, data=data, network={"training_method": "full", "alpha": 3.0}, save={"per_steps": 3},
        preview={"prompts": ["a"], "steps": 2}, prompts=[{"target": "a disc", "resolution": 64, "guidance_scale": 4}],
    )  # fmt: skip
    main = script_main("train_lora-scale-zimage")
    assert main([*argv, "--dry_run"]) == 0
    assert not (root / "models").exists()
    assert main([*argv, "--iterations", "3"]) == 0
    assert main([*argv, "--iterations", "6", "--resume"]) == 0
    return root / "models" / RUN / f"{RUN}_last.safetensors"


def test_programs_are_told_which_model_it_is_for(trained):
    with safe_open(trained, framework="pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert metadata["ss_base_model_version"] == "zimage"
    assert metadata["modelspec.architecture"] == "Z-Image/lora"
    assert "modelspec.prediction_type" not in metadata
    layers = ("attention.to_q", "attention.to_out.0", "feed_forward.w1", "feed_forward.w2")
    ends = ("lora_A.weight", "lora_B.weight")
    assert {f"diffusion_model.layers.1.{layer}.{end}" for layer in layers for end in ends} <= keys
    assert len(keys) == 14 * 2
    assert json.loads(trained.with_suffix(".json").read_text(encoding="utf-8"))["sd version"] == "Unknown"
    assert Image.open(trained.with_suffix(".preview.png")).width > 64


def test_the_gain_is_in_the_weights_and_comes_back(tmp_path):
    """Folded before rounding to float16: once."""
    denoiser = ZImage(ZIMAGE, build_narrow_zimage(), "tiny").denoiser
    settings = Network(type="c3lier", rank=4, alpha=3.0)
    network = AdaptorNetwork(denoiser, settings)
    randomize(network)
    for dtype in (torch.float32, torch.float16):
        found = slider_tensors(network, ZIMAGE_FAMILY, dtype)
        for path, adaptor in zip(network.module_paths, network.adaptors, strict=True):
            assert torch.equal(found[f"diffusion_model.{path}.lora_A.weight"], adaptor.down.to(dtype))
            assert torch.equal(found[f"diffusion_model.{path}.lora_B.weight"], (adaptor.up * 0.75).to(dtype))
    metadata = {"sliders.config": json.dumps({"network": settings.model_dump()})}
    tensors = slider_tensors(network, ZIMAGE_FAMILY, torch.float32)
    save_slider(tmp_path / "s.safetensors", tensors, metadata, ZIMAGE_FAMILY)
    network.remove()
    again = open_slider(tmp_path / "s.safetensors", denoiser, ZIMAGE_FAMILY)
    for ours, theirs in zip(network.adaptors, again.adaptors, strict=True):
        assert theirs.gain == 0.75
        assert torch.equal(ours.down, theirs.down)
        assert (ours.up - theirs.up).abs().max() < 1e-7


def test_six_steps_equal_three_and_three_after_a_resume(trained, tmp_path):
    root = trained.parents[2]
    config = (root / "config.yaml").read_text(encoding="utf-8").replace(str(root / "models"), str(tmp_path / "models"))
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    argv = ["--config_file", str(tmp_path / "config.yaml"), "--folder_main", str(root / "data"), "--device", "cpu"]
    argv += ["--folders", "low, base, high", "--scales", "-1, 0.5, 1", "--lr", "0.02", "--iterations", "6"]
    assert script_main("train_lora-scale-zimage")(argv) == 0
    again, first = load_file(tmp_path / "models" / RUN / trained.name), load_file(trained)
    assert all(torch.equal(again[key], first[key]) for key in first)


def picture(pipe, embeds, noise, guidance, steps=3):
    """guidance: as this project counts it."""
    return torch.from_numpy(
        pipe(
            prompt_embeds=[embeds[LONG].tokens], negative_prompt_embeds=[embeds[""].tokens],
            num_inference_steps=steps, guidance_scale=guidance - 1, width=64, height=48, latents=noise, output_type="np",
        ).images[0].transpose(2, 0, 1)
    )  # fmt: skip


@pytest.mark.parametrize("shift", [6.0, 3.0], ids=["base", "turbo"])
def test_sampled_pictures_equal_those_of_diffusers_with_the_slider_loaded_there(trained, shift):
    """diffusers attaches its own LoRA to its own transformer. Turbo is sampled without guidance."""
    pipe, plain = (build_narrow_zimage(shift=shift) for _ in range(2))
    model = ZImage(ZIMAGE, build_narrow_zimage(shift=shift), "tiny")
    embeds = model.encode_prompts([LONG, ""], "cpu")
    network = open_slider(trained, model.denoiser, ZIMAGE_FAMILY)
    pipe.load_lora_weights(str(trained.parent), weight_name=trained.name, adapter_name="slider")
    assert sum("lora_A" in name for name, _ in pipe.transformer.named_parameters()) == len(network.adaptors)
    noise = torch.randn(model.facts.latent_shape(48, 64), generator=torch.Generator().manual_seed(1))[None]
    guidance = 1.0 if shift == 3.0 else 4.0
    base = picture(plain, embeds, noise, guidance)
    multipliers = (-1.0, 0.0, 0.67, 2.0)
    rows = [Row(embeds[LONG], 1, (m,)) for m in multipliers]
    made = list(sample(model, [network], rows, embeds[""], Sampling(64, 48, 3, 4.0)))
    errors, changes = [], []
    for multiplier, ours in zip(multipliers, made, strict=True):
        pipe.set_adapters(["slider"], [multiplier])
        errors.append((ours - picture(pipe, embeds, noise, guidance)).abs().max().item())
        changes.append((ours - base).abs().max().item())
    print("largest errors", errors, "largest changes", changes)
    assert max(errors) < 1e-4
    assert changes[1] < 1e-4 and min(changes[0], changes[3]) > 1e-3


@pytest.mark.parametrize("spelling", ["diffusion_model.", "transformer.", "lora_unet_"])
def test_conversion_restores_the_slider(trained, tmp_path, spelling):
    """From files without metadata: AI Toolkit's, diffusers', and Musubi Tuner's, which states alpha."""
    wanted, tensors = load_file(trained), {}
    for key, tensor in wanted.items():
        module, part = key.removeprefix("diffusion_model.").rsplit(".lora_", 1)
        if spelling == "lora_unet_":
            part = {"A.weight": "down.weight", "B.weight": "up.weight"}[part]
            module = module.replace(".", "_")
            tensors[f"{spelling}{module}.alpha"] = torch.tensor(4.0)
        tensors[f"{spelling}{module}.lora_{part}"] = tensor
    save_file(tensors, tmp_path / "old.safetensors")
    flags = ["--family", "zimage", "--model", "tiny"]
    assert script_main("convert_slider")([str(tmp_path / "old.safetensors"), *flags]) == 0
    out = tmp_path / "old_converted.safetensors"
    found = load_file(out)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    open_slider(out, ZIMAGE_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32).denoiser, ZIMAGE_FAMILY)


def test_our_own_file_is_reversed_with_its_settings(trained, tmp_path):
    out = tmp_path / "reversed.safetensors"
    flags = ["--family", "zimage", "--model", "tiny", "--reverse", "--out", str(out)]
    assert script_main("convert_slider")([str(trained), *flags]) == 0
    found, wanted = load_file(out), load_file(trained)
    assert all(torch.equal(found[key], -wanted[key] if ".lora_B." in key else wanted[key]) for key in wanted)
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["sliders.config"])["network"]["alpha"] == 3.0


@pytest.mark.parametrize(
    ("script", "title"), [("sample_slider-xl", "SDXL"), ("sample_slider-flux2", "FLUX.2 [klein] 4B")]
)
def test_sliders_of_other_families_are_not_sampled(trained, tmp_path, capsys, script, title):
    assert script_main(script)(sample_argv(trained, tmp_path / "o")) == 2
    assert f"not {title}: choose a LoRA for {title}" in capsys.readouterr().err


def test_the_sample_command_makes_pictures_and_a_card(trained, tmp_path):
    main, data = script_main("sample_slider-zimage"), trained.parents[2] / "data"
    assert main(sample_argv(trained, tmp_path / "o", "--card", str(data))) == 0
    assert len(list((tmp_path / "o").glob("01_seed1_x*.png"))) > 3
    assert "sliders.card" in safe_open(trained, framework="pt").metadata()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sampler", "ddim"], "--sampler: ddim cannot sample from Z-Image"),
        (["--width", "72"], "--width: 72 is not a multiple of 16: use 64."),
    ],
)
def test_flags_of_other_families_are_refused(trained, tmp_path, capsys, flags, said):
    assert script_main("sample_slider-zimage")(sample_argv(trained, tmp_path / "o", *flags)) == 2
    assert said in capsys.readouterr().err


def test_the_plan_says_what_choices_mean(tmp_path, capsys):
    main = script_main("train_lora-scale-zimage")
    assert main([*write_experiment(tmp_path, network={"type": "lierla", "training_method": "full"}), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "layers  8 of lierla full" in out
    assert "save.name is probe_zimage, because some programs know" in out
    assert main([*write_experiment(tmp_path, network={"training_method": "noxattn"}), "--dry_run"]) == 2
    assert "image and prompt are read by the same attention layers: use full." in capsys.readouterr().err
    pretrained = {"name_or_path": "Tongyi-MAI/Z-Image-Turbo"}
    argv = write_experiment(tmp_path, network=FULL, pretrained_model=pretrained)
    assert main([*argv, "--dry_run"]) == 0
    assert (
        "Z-Image-Turbo is step-distilled, which training undoes: train on Tongyi-MAI/Z-Image" in capsys.readouterr().out
    )
