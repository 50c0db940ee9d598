"""Sliders from prompts alone: the loss against the paper's formula, both signs, and the command from YAML to slider."""

import dataclasses
import json
import shlex
from itertools import pairwise

import pytest
import torch
from conftest import script_main, write_yaml
from experiments import (
    TEXT_SETS,
    TEXT_STEPS,
    UPSTREAM_BLOCK,
    make_text_trainer,
    text_settings_of,
    write_text_experiment,
)
from naive import NaiveLora, scaled_linear_alphas
from networks import gathered_gradients, randomize
from PIL import Image
from safetensors import safe_open
from sliders.config.schema import PretrainedModel
from sliders.data.timesteps import timestep_of
from sliders.formats.checkpoint import checkpoints_of
from sliders.models.objective import EPSILON, V_PREDICTION, Objective
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.system.errors import InputError
from sliders.train.plan import describe, make_plan
from sliders.train.trainer import Trainer
from torch.utils._pytree import tree_leaves


class NaiveText:
    """The step in float64 from its description, row by row, with one UNet pass for each prediction."""

    def __init__(self, trainer):
        network = trainer.network
        downs, ups = [a.down for a in network.adaptors], [a.up for a in network.adaptors]
        self.trainer, self.unet = (
            trainer,
            SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32).denoiser.double(),
        )
        self.lora = NaiveLora(self.unet, network.module_paths, downs, ups, trainer.settings.network.alpha)
        self.alphas_cumprod = scaled_linear_alphas()

    def predict(self, noisy, timestep, prompt, multiplier):
        """prompt: None is the negative prompt of a web UI."""
        self.lora.multiplier = multiplier
        embeds = self.trainer.embeds
        embeds = self.trainer.model.negative("", embeds) if prompt is None else embeds[prompt]
        time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]], dtype=torch.float64)
        added = {"text_embeds": embeds.pooled[None].double(), "time_ids": time_ids}
        return self.unet(noisy, timestep, embeds.tokens[None].double(), added_cond_kwargs=added).sample

    @torch.no_grad()
    def latents(self, row, target):
        """From noise to the row's timestep, with guidance 3 against the empty prompt and the slider at s throughout."""
        noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(row.noise_seed))
        noisy = noise[None].double()
        for now, after in pairwise(timestep_of(k, TEXT_STEPS) for k in range(TEXT_STEPS)):
            if now == row.timestep:
                break
            empty = self.predict(noisy, now, None, row.scale)
            epsilon = empty + 3 * (self.predict(noisy, now, target, row.scale) - empty)
            before, then = self.alphas_cumprod[now], self.alphas_cumprod[after]
            image = (noisy - (1 - before).sqrt() * epsilon) / before.sqrt()
            noisy = then.sqrt() * image + (1 - then).sqrt() * epsilon
        return noisy

    def loss(self, draw):
        """Gradients accumulate in the LoRA's tensors."""
        chosen, losses = self.trainer.settings.prompts[draw.prompt], []
        eta = chosen.guidance_scale * (1 if chosen.action == "enhance" else -1)
        for row in draw.rows:
            noisy = self.latents(row, chosen.target)
            with torch.no_grad():
                positive, unconditional, neutral = (
                    self.predict(noisy, row.timestep, prompt, 0.0)
                    for prompt in (chosen.positive, chosen.unconditional, chosen.neutral)
                )
            wanted = neutral + eta * row.scale * (positive - unconditional)
            loss = ((self.predict(noisy, row.timestep, chosen.target, row.scale) - wanted) ** 2).mean()
            (2 * loss / len(draw.rows)).backward()
            losses.append(loss.item())
        return 2 * sum(losses) / len(losses)


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(("prompt", "checkpointing"), [(0, False), (1, True)])
def test_a_step_equals_the_papers_formula(tmp_path, prompt, checkpointing):
    """One prompt set enhances, the other erases; latents, loss and every gradient."""
    trainer = make_text_trainer(tmp_path, other={"gradient_checkpointing": checkpointing})
    randomize(trainer.network)
    draws = (trainer.step.draw(step) for step in range(100))
    draw = next(d for d in draws if d.prompt == prompt and d.rows[0].timestep < 600 < d.rows[-1].timestep)
    naive = NaiveText(trainer)
    wanted = naive.loss(draw)
    batch = trainer.step.make_batch(draw)
    latents = torch.cat([naive.latents(row, TEXT_SETS[prompt]["target"]) for row in draw.rows])
    assert relative_error(batch.noisy, latents) < 1e-4
    loss = trainer.step.loss_of(batch)
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    found = gathered_gradients(trainer)
    for i, path in enumerate(trainer.network.module_paths):
        assert relative_error(found[f"adaptors.{i}.down"], naive.lora.downs[path].grad) < 1e-3, path
        assert relative_error(found[f"adaptors.{i}.up"], naive.lora.ups[path].grad) < 1e-3, path


def test_multiplier_minus_s_wants_the_opposite_and_so_does_erase(tmp_path):
    trainer = make_text_trainer(tmp_path)
    asked = []
    trainer.step.denoiser.adapted = lambda noisy, batch: asked.append(batch) or torch.zeros_like(noisy)
    batch = trainer.step.make_batch(trainer.step.draw(0))
    frozen = trainer.step.denoiser.frozen
    neutral_only = {k: v.chunk(3)[2].repeat(3, *(1,) * (v.dim() - 1)) for k, v in batch.frozen.items()}
    neutral = frozen(batch.noisy, batch.timesteps, {k: v.chunk(3)[0] for k, v in neutral_only.items()})

    def squared_target(**changes):
        return trainer.step.loss(trainer.step.denoiser, dataclasses.replace(batch, **changes))

    plus, minus = squared_target(), squared_target(scales=-batch.scales)
    still = squared_target(frozen=neutral_only)
    assert torch.allclose(squared_target(strength=-batch.strength), minus)
    assert torch.allclose(still, neutral.square().flatten(1).mean(1), rtol=1e-5)
    moved = (plus + minus) / 2 - still  # |n + d|² and |n − d|² average to |n|² + |d|²
    assert (moved > 0).all() and not torch.allclose(plus, minus)


def test_every_step_trains_both_signs_over_the_whole_range(tmp_path):
    plan = make_plan(text_settings_of(write_text_experiment(tmp_path, ["--scales", "-2, 1"])))
    trainer = Trainer(plan)
    draws = [trainer.step.draw(step) for step in range(500)]
    scales = sorted(row.scale for draw in draws for row in draw.rows)
    assert scales[0] > -2 and scales[0] < -1.98 and 0.98 < scales[-1] < 1
    assert all(sum(row.scale < -0.5 for row in draw.rows) == len(draw.rows) // 2 for draw in draws)
    assert sum(scale < -1.25 for scale in scales) / len(scales) == pytest.approx(0.25, abs=0.03)
    again = Trainer(plan)
    assert [again.step.draw(step) for step in (7, 3)] == [draws[7], draws[3]]
    first, second = (t.step.make_batch(draws[3]) for t in (trainer, again))
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(first), tree_leaves(second), strict=True))


@pytest.mark.parametrize("prediction", [EPSILON, V_PREDICTION])
def test_image_and_noise_of_a_prediction_make_up_the_latents(prediction):
    schedule = Objective.variance_preserving(scaled_linear_alphas().float(), prediction)
    generator = torch.Generator().manual_seed(0)
    noisy, predicted = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    timesteps = torch.tensor([10, 500, 999])
    parts = schedule.image(noisy, predicted, timesteps), schedule.noise(noisy, predicted, timesteps)
    assert torch.allclose(schedule.add_noise(*parts, timesteps), noisy, atol=1e-4)
    assert torch.allclose(schedule.target(*parts, timesteps), predicted, atol=1e-4)


# --- the command

UPSTREAM_CONFIG = f"""
prompts_file: "PROMPTS"
pretrained_model:
  name_or_path: "stabilityai/stable-diffusion-xl-base-1.0"
  v2: false
  v_pred: false
{UPSTREAM_BLOCK}"""
UPSTREAM_PROMPTS = """
- target: "person"
  positive: "person, old"
  unconditional: "person, young"
  neutral: "person"
  action: "enhance"
  guidance_scale: 4
  resolution: 512
  dynamic_resolution: false
  batch_size: 1
- target: "hat"
  positive: "hat"
  unconditional: ""
  action: "erase"
  guidance_scale: 1
"""


def test_the_original_trainers_command_and_files_are_accepted(tmp_path):
    prompts = write_yaml(tmp_path / "prompts-xl.yaml", UPSTREAM_PROMPTS)
    config = write_yaml(tmp_path / "config-xl.yaml", UPSTREAM_CONFIG.replace("PROMPTS", str(prompts)))
    line = f"--attributes 'male, female' --name 'ageslider' --rank 8 --alpha 1 --device 0 --config_file '{config}'"
    settings = text_settings_of(shlex.split(line))
    assert settings.run_dir.name == "ageslider_alpha1.0_rank8_noxattn"
    assert settings.data.scales == (-1, 1)
    sets = settings.prompts
    assert [(p.target, p.positive, p.unconditional, p.neutral) for p in sets] == [
        ("male person", "male person, old", "male person, young", "male person"),
        ("female person", "female person, old", "female person, young", "female person"),
        ("male hat", "male hat", "male ", "male "),
        ("female hat", "female hat", "female ", "female "),
    ]
    assert [p.strength for p in sets] == [4, 4, -1, -1]
    assert (
        text_settings_of(["--config_file", str(config), "--prompts_file", str(prompts)]).prompts[0].target == "person"
    )


REFUSED = {
    "a caption": ({"positive": "{caption}, red"}, {}, (), "no images whose captions could fill it"),
    "no direction": ({"unconditional": "a red shape"}, {}, (), "nothing between them to learn"),
    "another action": ({"action": "remove"}, {}, (), "action: 'remove' is not one of its values"),
    "auto": ({}, {"timestep_bias": "auto"}, (), "train.timestep_bias: auto is measured on images"),
    "dropout": ({}, {"caption_dropout": 0.1}, (), "train.caption_dropout: 0.1 leaves out captions"),
    "grouped scales": ({}, {"scales_per_step": 2}, (), "train.scales_per_step: 2 groups images"),
    "lms": ({}, {"noise_scheduler": "lms"}, (), "train.noise_scheduler: lms .* set it to ddim"),
    "a loss of images": ({}, {"loss": "pairs"}, (), "train.loss: 'pairs' is not known"),
    "one multiplier": ({}, {}, ["--scales", "1, 1"], "--scales: 1 alone is no range"),
    "folders": ({}, {}, ["--folders", "a, b"], "--folders is not a known flag"),
    "an odd size": ({"resolution": 70}, {}, (), "resolution: 70 is not a multiple of 32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_apply_is_refused_with_a_sentence(tmp_path, case):
    change, train, flags, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        make_plan(text_settings_of(write_text_experiment(tmp_path, flags, [{**TEXT_SETS[0], **change}], train=train)))


def test_the_script_trains_previews_and_resumes_to_the_same_slider(tmp_path, monkeypatch, capsys):
    """Four steps equal two and two more, bit for bit; what is beside the slider speaks of multipliers, not of folders."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    main = script_main("train_lora_xl")
    train = {"iterations": 4, "lr_scheduler": "cosine"}
    preview = {"prompts": ["a disc"], "multipliers": [-1, 0, 1], "steps": 2, "guidance": 3}
    straight = write_text_experiment(tmp_path / "straight", train=train, preview=preview, save={"per_steps": 2})
    halved = write_text_experiment(tmp_path / "halved", train=train, save={"per_steps": 2})
    assert main([*straight, "--dry_run"]) == 0
    assert "under 'a disc', multiplier 1 is 'a disc' -3 · ('a red disc' − 'a blue disc')" in capsys.readouterr().out
    assert main(straight) == 0
    run, whole = text_settings_of(halved).run_dir, text_settings_of(straight).run_dir
    assert main(halved) == 0
    (run / f"{run.name}_4steps.state").unlink()
    assert list(checkpoints_of(text_settings_of(halved))) == [2]
    assert main([*halved, "--resume"]) == 0
    name = f"{whole.name}_last"
    assert (run / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes()
    assert Image.open(whole / f"{name}.preview.png").width > 3 * 64
    card = json.loads((whole / f"{name}.json").read_text(encoding="utf-8"))
    assert (card["activation text"], card["negative text"], card["preferred weight"]) == ("", "", 1)
    assert card["notes"].startswith("Trained at all multipliers from -1 to 1.")
    with safe_open(whole / f"{name}.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["sliders.scales"]) == [-1, 1]
    assert "ss_dataset_dirs" not in metadata
    assert main([*halved, "--resume", "--scales", "-2, 2"]) == 2
    assert "scales 1 was -1.0 and is now -2.0" in capsys.readouterr().err


def test_options_of_prompt_sets_train(tmp_path):
    """A size that varies, said to be a crop."""
    sets = [{**TEXT_SETS[0], "resolution": 128, "dynamic_resolution": True, "dynamic_crops": True}]
    trainer = make_text_trainer(tmp_path, prompts=sets, train={"min_snr_gamma": 5})
    draws = {draw.resolution: draw for draw in map(trainer.step.draw, range(20))}
    assert set(draws) == {64, 128}
    for draw in draws.values():
        batch = trainer.step.make_batch(draw)
        assert batch.noisy.shape[-1] == draw.resolution // 8
        height, width, top, left, *target = batch.conditioning["time_ids"][0].tolist()
        assert target == [draw.resolution] * 2 and 0 <= top <= height - target[0] and 0 <= left <= width - target[1]
        assert torch.isfinite(trainer.step.loss_of(batch))


def test_the_plan_says_what_is_trained(tmp_path):
    text = describe(make_plan(text_settings_of(write_text_experiment(tmp_path, ["--scales", "-2, -1, 1, 2"]))))
    assert "range   multipliers -2 to 2, without images" in text
    assert "2 pair(s) at 64×64 px or 1 pair(s) at 64×64 px" in text
