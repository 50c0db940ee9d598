"""The command line from photographs and YAML to a slider."""

import re

import numpy as np
import pytest
from conftest import ROOT, make_scale_folders, write_experiment
from PIL import Image
from safetensors.torch import load_file
from sliders.config.settings import load_settings
from sliders.formats.slider_file import load_slider
from sliders.system.weight_files import open_weights
from sliders.train.plan import make_plan
from sliders.train.runs import run_all
from sliders.train.trainer import Trainer

GUIDES = ("trainscripts/imagesliders/README.md", "trainscripts/sliders/README.md", "trainscripts/textsliders/README.md")
EXPOSURES = {"dark": 0.5, "base": 1.0, "bright": 1.4, "glaring": 2.0}


def write_photographs(root):
    """Writes scikit-image's sample photographs at four exposures, one folder for each."""
    from skimage import data

    photos = {"astronaut": data.astronaut(), "cat": data.chelsea(), "coffee": data.coffee(), "rocket": data.rocket()}
    for folder, exposure in EXPOSURES.items():
        (root / folder).mkdir(parents=True)
        for name, pixels in photos.items():
            exposed = np.clip(pixels.astype(float) * exposure, 0, 255).astype(np.uint8)
            Image.fromarray(exposed).save(root / folder / f"{name}.jpg", quality=92)
    return root


def mean_loss(trainer, steps=20):
    """Mean loss over fixed draws, without training."""
    return sum(trainer.step.loss_of(trainer.step.make_batch(trainer.step.draw(s))).item() for s in range(steps)) / steps


def parts_of(folder):
    (path,) = folder.glob("*/*_last.safetensors")
    return {key.split(".", 1)[1] for key in load_file(path)}


def test_lycorisize_means_glora_as_in_the_fork(tmp_path, train_main):
    assert train_main(write_experiment(tmp_path, other={"lycorisize": True})) == 0
    assert parts_of(tmp_path / "models") == {"a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"}


@pytest.mark.parametrize("algo", ["loha", "lokr", "full"])
def test_each_algorithm_trains_and_resumes(tmp_path, train_main, capsys, algo):
    """Patterns too: the plan counts what they choose. Four steps are two and two more."""
    network = {
        "algo": algo,
        "include": [{"pattern": "*ff.net*", "rank": 2, "alpha": 2}],
        "exclude": "mid_block.resnets*",
    }
    argv = write_experiment(tmp_path, network=network, save={"path": str(tmp_path / "once")}, train={"iterations": 4})
    assert train_main(argv) == 0
    out = capsys.readouterr().out
    assert "of c3lier noxattn, with 34 of *ff.net* (rank 2 alpha 2), without 6 of mid_block.resnets*: " + algo in out
    assert ("rank and alpha have no effect" in out) == (algo == "full")
    for iterations in (2, 4):
        save = {"path": str(tmp_path / "twice"), "per_steps": 2}
        argv = write_experiment(tmp_path, ["--resume"], network=network, save=save, train={"iterations": iterations})
        assert train_main(argv) == 0
    once, twice = (load_file(next((tmp_path / f).glob("*/*_last.safetensors"))) for f in ("once", "twice"))
    assert once.keys() == twice.keys() and all((once[key] == twice[key]).all() for key in once)
    assert any("_ff_net_" in key for key in once) and not any("middle_block_0_" in key for key in once)


def test_photographs_train_a_slider(tmp_path, train_main, capsys):
    """Through the command line. The loss on 20 fixed draws is lower at the end than at the start."""
    flags = [
        "--folders", ", ".join(EXPOSURES), "--scales", *(f"{e}," for e in EXPOSURES.values()),
        "--iterations", "60", "--lr", "0.003", "--resolution", "96", "--rank", "8", "--alpha", "8",
    ]  # fmt: skip
    argv = write_experiment(
        tmp_path, flags=flags, data=write_photographs(tmp_path / "photos"),
        network={"training_method": "full"}, save={"name": "exposure", "per_steps": 25}, train={"lr_scheduler": "cosine"},
    )  # fmt: skip
    assert train_main(argv) == 0
    folder = tmp_path / "models" / "exposure_alpha8.0_rank8_full"
    names = {p.name for p in folder.glob("*.safetensors")}
    stem = "exposure_alpha8.0_rank8_full"
    assert names == {f"{stem}_25steps.safetensors", f"{stem}_50steps.safetensors", f"{stem}_last.safetensors"}
    assert not list(folder.glob("*.tmp"))
    assert f"<lora:{stem}_last:0>|<lora:{stem}_last:0.5>|<lora:{stem}_last:1>" in capsys.readouterr().out

    (settings,), _ = load_settings([*argv, "--overwrite"])
    trainer = Trainer(make_plan(settings))
    start = mean_loss(trainer)
    load_slider(open_weights(folder / f"{stem}_last.safetensors", ""), trainer.network, trainer.plan.family)
    assert mean_loss(trainer) < start


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Trains on the generated data set in a separate folder. `SOURCE_DATE_EPOCH` fixes the times in the metadata."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    data = make_scale_folders(tmp_path / "data", names=("one", "two", "three"))

    def train(run, *flags, **overrides):
        (tmp_path / run).mkdir()
        argv = write_experiment(tmp_path / run, flags=flags, data=data, **overrides)
        runs, _ = load_settings(argv)
        return run_all(runs)

    return train


def test_the_same_seed_gives_a_bit_identical_file(experiment):
    (first,), (second,), (other,) = experiment("a"), experiment("b"), experiment("c", "--seed", "1")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.losses == second.losses
    assert first.path.read_bytes() != other.path.read_bytes()
    assert first.losses != other.losses


@pytest.mark.parametrize(
    "prompts",
    [
        [{"target": "", "resolution": 96, "dynamic_resolution": True}],
        [{"target": "", "resolution": 64, "dynamic_crops": True, "batch_size": 4}],
        [
            {"target": "a", "positive": "a, b", "resolution": 64},
            {"target": "c", "resolution": 96, "dynamic_crops": True},
        ],
    ],
    ids=["dynamic_resolution", "dynamic_crops", "two prompt sets"],
)
def test_prompt_sets_train(experiment, prompts):
    (report,) = experiment("run", prompts=prompts)
    assert np.isfinite(report.losses).all()


@pytest.mark.parametrize("network_type", ["lierla", "c3lier"])
@pytest.mark.parametrize("method", ["noxattn", "xattn-strict", "noxattn-hspace"])
def test_network_types_and_methods_train(experiment, network_type, method):
    (report,) = experiment("run", network={"type": network_type, "training_method": method})
    assert any(t.abs().sum() > 0 for k, t in load_file(report.path).items() if "lora_up" in k)


def test_attributes_repeat_prompt_sets(tmp_path):
    argv = write_experiment(
        tmp_path, flags=["--attributes", "young, old"], prompts=[{"target": "robe", "resolution": 64}]
    )
    (settings,), _ = load_settings(argv)
    assert [p.positive for p in settings.prompts] == ["young robe", "old robe"]
    assert [p.neutral for p in settings.prompts] == ["young ", "old "]


def test_stylecheck_trains_one_slider_per_data_set(tmp_path, train_main):
    for i in range(3):
        make_scale_folders(tmp_path / f"style{i}", folders=("low", "high"))
    flags = ["--folders", "low, high", "--scales", "-1, 1", "--stylecheck", "0-2"]
    argv = write_experiment(tmp_path, flags=flags, data=tmp_path / "style")
    assert train_main(argv) == 0
    made = {p.name for p in (tmp_path / "models").iterdir()}
    assert made == {"style0_alpha2.0_rank4_noxattn", "style1_alpha2.0_rank4_noxattn"}


def test_losses_are_logged_for_tensorboard(experiment):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (report,) = experiment("run")
    events = EventAccumulator(str(report.path.parent / "logs"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(report.losses)
    assert [e.step for e in events.Scalars("lr")] == [1, 2, 3]


@pytest.mark.parametrize("readme", ["README.md", *GUIDES])
def test_the_files_named_in_the_readmes_exist(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / readme).parent.joinpath(link).exists(), link
    for line in text.splitlines():
        for word in (w.lstrip("`(") for w in line.split()):
            if word.startswith(("trainscripts/", "datasets/shapes", "tests/")) and "{" not in word and "…" not in word:
                assert (ROOT / word.strip("`,.;:)'\"")).exists(), word
