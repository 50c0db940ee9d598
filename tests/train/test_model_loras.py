"""Training on top of LoRAs: the run equals one on a model whose weights were merged by hand."""

import json

import pytest
import torch
from conftest import write_experiment
from experiments import sample_argv
from networks import random_network
from other_programs import of_kohya, of_lycoris
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sliders.config.schema import PretrainedModel
from sliders.config.settings import load_settings
from sliders.formats.slider_file import save_slider, slider_tensors
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.sample.plan import make_plan as make_sample_plan
from sliders.sample.settings import load_sample_settings
from sliders.system.errors import InputError
from sliders.train.plan import describe, make_plan
from sliders.train.trainer import Trainer

WEIGHTS = {"style": 0.02, "shape": -0.01}


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """Files of kohya's scripts and of LyCORIS, and {layer: ΔW} of both at their weights."""
    unet, root, totals = build_narrow_sdxl().unet, tmp_path_factory.mktemp("loras"), {}
    for name, make in (("style", of_kohya), ("shape", of_lycoris("loha"))):
        (root / "made").mkdir(exist_ok=True)
        made, deltas, _ = make(unet, root / "made")
        (root / "made" / made).rename(root / f"{name}.safetensors")
        for path, delta in deltas.items():
            shaped = WEIGHTS[name] * delta.double().view(unet.get_submodule(path).weight.shape)
            totals[path] = totals.get(path, 0) + shaped
    return root, totals


def with_loras(loras, *names):
    return {"loras": [{"file": str(loras[0] / f"{name}.safetensors"), "weight": WEIGHTS[name]} for name in names]}


def argv_of(folder, *flags, **model):
    folder.mkdir(exist_ok=True)
    return write_experiment(folder, pretrained_model=model, train={"iterations": 2}, save={"per_steps": 1}, flags=flags)


def plan_of(argv):
    (settings,), _ = load_settings(argv)
    return make_plan(settings)


@pytest.fixture(scope="module")
def trained(loras, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    plan = plan_of(argv_of(folder, **with_loras(loras, "style", "shape")))
    trainer = Trainer(plan)
    return folder, trainer, trainer.run()


def test_the_frozen_weights_are_those_merged_by_hand_and_so_is_the_run(trained, loras, tmp_path):
    """The sum is rounded once, to the model's precision."""
    _, trainer, report = trained
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)
    largest = 0.0
    for path, total in loras[1].items():
        layer = model.denoiser.get_submodule(path)
        wanted = layer.weight.double() + total
        found = trainer.model.denoiser.get_submodule(path).weight
        assert (found.double() - wanted).abs().max() < 2e-6
        largest = max(largest, total.abs().max().item())
        layer.weight.data = wanted.float()
    assert largest > 1e-2
    by_hand = Trainer(plan_of(argv_of(tmp_path / "run")), model)
    assert by_hand.run().losses == pytest.approx(report.losses, rel=1e-4)
    without = Trainer(plan_of(argv_of(tmp_path / "without"))).run()
    assert without.losses[0] != pytest.approx(report.losses[0], rel=1e-2)


def test_plan_metadata_and_sidecar_name_them(trained, loras):
    _, trainer, report = trained
    text = describe(trainer.plan)
    assert f"with    {loras[0] / 'style.safetensors'} at 0.02, merged into" in text
    assert "made for the model with <lora:style:0.02> <lora:shape:-0.01>: add that to prompts" in text
    with safe_open(report.path, framework="pt") as file:
        metadata = file.metadata()
    found = json.loads(metadata["sliders.loras"])
    assert [(one["name"], one["weight"]) for one in found] == [("style", 0.02), ("shape", -0.01)]
    assert len({one["hash"] for one in found}) == 2
    assert str(loras[0]) not in json.dumps(metadata)
    notes = json.loads(report.path.with_suffix(".json").read_text())["notes"]
    assert "on the model with <lora:style:0.02> <lora:shape:-0.01>." in notes


def test_sampling_says_if_they_are_not_in_the_prompt(trained, loras, tmp_path):
    _, _, report = trained
    argv = sample_argv(report.path, tmp_path / "o", "--lora_dir", str(loras[0]))
    plan = make_sample_plan(load_sample_settings(argv, "sdxl"))
    assert any("with <lora:style:0.02> <lora:shape:-0.01>: add that to the prompt" in note for note in plan.notes)
    argv[argv.index("--prompt") + 1] = "a disc <lora:style:0.02> <lora:shape:-0.01>"
    plan = make_sample_plan(load_sample_settings(argv, "sdxl"))
    assert not any("was trained on the model with" in note for note in plan.notes)


def test_resume_takes_the_same_loras_only(trained, loras, tmp_path):
    folder, _, _ = trained

    def resumed(model):
        return plan_of(argv_of(folder, "--resume", **model))

    assert resumed(with_loras(loras, "style", "shape")).checkpoint.step == 2
    changed = {"loras": [{**one, "weight": 0.5} for one in with_loras(loras, "style", "shape")["loras"]]}
    for model in (with_loras(loras, "style"), {}, changed):
        with pytest.raises(InputError, match=r"--resume: pretrained_model.loras.* was .* and is now"):
            resumed(model)
    other = tmp_path / "style.safetensors"
    save_file({k: t * 2 if k.endswith("up.weight") else t for k, t in load_file(loras[0] / other.name).items()}, other)
    same_name = with_loras(loras, "style", "shape")["loras"]
    same_name[0]["file"] = str(other)
    with pytest.raises(InputError, match=r"pretrained_model.loras 1\.hash was"):
        resumed({"loras": same_name})


def test_a_file_that_changes_after_the_plan_is_refused(loras, tmp_path):
    path = tmp_path / "style.safetensors"
    path.write_bytes((loras[0] / "style.safetensors").read_bytes())
    plan = plan_of(argv_of(tmp_path / "run", loras=[{"file": str(path)}]))
    save_file({k: t * 2 if k.endswith("up.weight") else t for k, t in load_file(path).items()}, path)
    with pytest.raises(InputError, match="has changed since it was checked"):
        Trainer(plan)


def test_a_glora_is_merged_by_the_weights_it_was_made_for(tmp_path):
    """Not by those that another LoRA has changed already: in which order they are given does not matter."""
    from sliders.formats.model_loras import check_loras, merge_loras

    unet, weightless = build_narrow_sdxl().unet, SDXL_FAMILY.weightless_denoiser("tiny")
    files = []
    for algo in ("lora", "glora"):
        network = random_network(unet, method="selfattn", algo=algo)
        config = {"type": "c3lier", "training_method": "selfattn", "rank": 4, "alpha": 2.0, "algo": algo}
        files.append(tmp_path / f"{algo}.safetensors")
        metadata = {"sliders.config": json.dumps({"network": config})}
        save_slider(files[-1], slider_tensors(network, SDXL_FAMILY, torch.float32), metadata, SDXL_FAMILY)
        network.remove()
    found = []
    for order in (files, files[::-1]):
        model = build_narrow_sdxl().unet
        wanted = PretrainedModel(name_or_path="tiny", loras=[{"file": str(path)} for path in order]).loras
        merge_loras(check_loras(wanted, weightless, SDXL_FAMILY), model, weightless, SDXL_FAMILY, torch.float32)
        found.append(model.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight)
    assert torch.allclose(*found, atol=1e-7)


BAD = {
    "a missing file": ({"file": "nowhere.safetensors"}, ["pretrained_model.loras", "nowhere.safetensors", "No such file"]),
    "another family": ({"file": "sd1.safetensors"}, ["pretrained_model.loras", "sd1.safetensors", "choose a LoRA for SDXL"]),
    "no file": ({"weight": 1}, ["pretrained_model.loras", "file"]),
    "a weight that is no number": ({"file": "sd1.safetensors", "weight": "much"}, ["pretrained_model.loras", "weight", "much"]),
    "an unknown key": ({"file": "sd1.safetensors", "strength": 1}, ["pretrained_model.loras", "strength"]),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "said"), BAD.values(), ids=BAD)
def test_bad_entries_are_refused_before_anything_is_loaded(train_main, tmp_path, monkeypatch, capsys, entry, said):
    monkeypatch.chdir(tmp_path)
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{key}.lora_down.weight": torch.ones(2, 320), f"{key}.lora_up.weight": torch.ones(320, 2)}
    save_file(tensors, "sd1.safetensors")
    monkeypatch.setattr("sliders.models.sdxl.family.SDXLFamily.load", lambda *_: pytest.fail("loaded the model"))
    assert train_main(argv_of(tmp_path / "run", loras=[entry])) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert [words for words in said if words not in error] == [], error
    assert not (tmp_path / "run" / "models").exists()
