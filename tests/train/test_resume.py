"""A killed run continues as if it had not been killed, and only with the settings it was started with."""

import random
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import disc
from experiments import RUN, VARIED, Bomb, experiment, settings_of
from processes import Training, hold_at
from safetensors.torch import load_file
from sliders.formats import checkpoint as checkpoints
from sliders.formats.checkpoint import checkpoints_of, newest_checkpoint, read_checkpoint
from sliders.train.plan import make_plan
from sliders.train.step import Step
from sliders.train.trainer import Trainer

STOPPED_CLOCK = {"SOURCE_DATE_EPOCH": "1700000000"}


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "prodigy"])
def test_a_killed_run_ends_in_the_same_file(tmp_path, optimizer):
    """30 steps equal 10 steps, kill -9 at a random step after the save, and the other 20; dynamic resolution, 2 pairs, cosine."""
    if optimizer == "prodigy":
        pytest.importorskip("prodigyopt")
    train = {"optimizer": optimizer, "lr_scheduler": "cosine", "lr": 1.0 if optimizer == "prodigy" else 1e-3}
    both = (tmp_path / "straight", tmp_path / "killed")
    straight, killed = (experiment(f, 30, per_steps=10, prompts=VARIED, train=train) for f in both)
    whole = Training(straight, tmp_path / "straight.log", STOPPED_CLOCK)
    run = settings_of(killed)
    moment = random.Random(optimizer).randint(11, 20)  # the next save is after step 20
    hold = partial(hold_at, "sliders.train.step:Step:__call__", moment)
    training = Training(killed, tmp_path / "killed.log", STOPPED_CLOCK, prepare=hold)
    training.until((tmp_path / "held").exists)
    assert training.signal(signal.SIGKILL).status() == -signal.SIGKILL
    resumed = Training([*killed, "--resume"], tmp_path / "resumed.log", STOPPED_CLOCK)
    assert (whole.status(), resumed.status()) == (0, 0), resumed.output
    assert f"resume  from {RUN}_10steps.state" in resumed.output
    last = [settings_of(argv).run_dir / f"{RUN}_last.safetensors" for argv in (straight, killed)]
    assert last[0].read_bytes() == last[1].read_bytes()
    ends = [read_checkpoint(checkpoints_of(settings)[30]).header for settings in (run, settings_of(straight))]
    assert ends[0] == ends[1]


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory, train_main):
    """The folder of a run of four steps with a checkpoint after each."""
    root = tmp_path_factory.mktemp("four")
    assert train_main(experiment(root / "run", iterations=4, per_steps=1)) == 0
    return root / "run" / "models" / RUN


@pytest.fixture
def finished(tmp_path, four_steps):
    """Command line and settings of that run, in a copy of its folder."""
    argv = experiment(tmp_path / "run", iterations=4, per_steps=1)
    shutil.copytree(four_steps, tmp_path / "run" / "models" / RUN)
    return argv, settings_of(argv)


def test_the_newest_checkpoints_and_all_sliders_are_kept(finished):
    _, settings = finished
    assert list(checkpoints_of(settings)) == [4, 3]
    names = sorted(p.name for p in settings.run_dir.iterdir())
    suffixes = ("1steps", "2steps", "3steps", "last")
    sliders = [f"{RUN}_{s}.{end}" for s in suffixes for end in ("safetensors", "json")]
    assert names == sorted([*sliders, f"{RUN}_3steps.state", f"{RUN}_4steps.state", "logs"])


def test_a_folder_with_a_checkpoint_asks_for_resume_or_overwrite(finished, train_main, capsys):
    argv, settings = finished
    before = {p: p.stat().st_mtime_ns for p in settings.run_dir.iterdir()}
    assert train_main(argv) == 2
    assert (
        "after 4 steps: add --resume to continue from there, or --overwrite to start again" in capsys.readouterr().err
    )
    assert {p: p.stat().st_mtime_ns for p in settings.run_dir.iterdir()} == before


def test_a_longer_run_continues_from_the_end_and_a_shorter_one_is_refused(finished, train_main, capsys):
    argv, settings = finished
    assert train_main([*argv, "--resume", "--iterations", "3"]) == 2
    assert "saved after 4 steps" in capsys.readouterr().err
    assert train_main([*argv, "--resume", "--iterations", "6", "--per_steps", "5"]) == 0
    assert "train.iterations was 4 and is now 6" in capsys.readouterr().out
    assert list(checkpoints_of(settings)) == [6, 5]


def test_a_finished_run_writes_its_last_slider_again(finished, train_main, capsys):
    argv, settings = finished
    last = settings.run_dir / f"{RUN}_last.safetensors"
    wanted = load_file(last)
    last.unlink()
    assert train_main([*argv, "--resume"]) == 0
    assert "no steps were left to do" in capsys.readouterr().out
    assert all(torch.equal(wanted[key], tensor) for key, tensor in load_file(last).items())


def test_a_slider_missing_after_a_kill_is_written_on_resume(tmp_path, train_main):
    """The checkpoint is written before the slider, so a kill between the two leaves only the checkpoint."""
    argv = experiment(tmp_path / "run", iterations=3, per_steps=2)
    settings = settings_of(argv)
    trainer = Trainer(make_plan(settings))
    for step in range(2):
        trainer.step(step)
        trainer.done += 1
    trainer.outputs.save_checkpoint(trainer.done, trainer.learner.tensors())
    assert train_main([*argv, "--resume"]) == 0
    names = {p.name for p in settings.run_dir.glob("*.safetensors")}
    assert names == {f"{RUN}_2steps.safetensors", f"{RUN}_last.safetensors"}


def test_overwriting_removes_the_old_checkpoints(finished, train_main):
    argv, settings = finished
    assert train_main([*argv, "--overwrite", "--iterations", "2", "--per_steps", "9"]) == 0
    assert list(checkpoints_of(settings)) == [2]


def test_overwriting_ends_before_it_begins_if_an_old_checkpoint_cannot_be_removed(
    finished, train_main, monkeypatch, capsys
):
    """As on Windows while another program has it open. Otherwise a later --resume would start from it."""
    argv, settings = finished
    before = sorted(settings.run_dir.iterdir())
    unlink = Path.unlink

    def held(path, **options):
        if path.suffix == ".state":
            raise PermissionError(13, "Access is denied")
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", held)
    assert train_main([*argv, "--overwrite"]) == 2
    assert re.search(
        r"error: --overwrite: .*\.state could not be removed: close the program that has it open",
        capsys.readouterr().err,
    )
    assert sorted(settings.run_dir.iterdir()) == before


def test_where_file_names_ignore_case_a_run_finds_its_checkpoints_in_any_case(finished, monkeypatch):
    _, settings = finished
    renamed = settings.model_copy(update={"save": settings.save.model_copy(update={"name": "PROBE"})})
    settings.run_dir.rename(renamed.run_dir)
    assert not checkpoints_of(renamed)
    monkeypatch.setattr(checkpoints, "SAME_NAME", re.IGNORECASE)
    assert checkpoints_of(renamed)


def test_overwriting_keeps_the_old_sliders_until_its_first_save(finished, train_main, monkeypatch):
    argv, settings = finished
    first = {p.name for p in settings.run_dir.glob("*.safetensors")}
    seen = []
    step = Step.__call__

    def looked(self, number):
        seen.append({p.name for p in settings.run_dir.glob("*.safetensors")})
        return step(self, number)

    monkeypatch.setattr(Step, "__call__", looked)
    assert train_main([*argv, "--overwrite", "--iterations", "3", "--per_steps", "2"]) == 0
    assert seen == [first, first, {f"{RUN}_2steps.safetensors"}]
    assert sorted(p.name for p in settings.run_dir.glob("*steps.*")) == [
        f"{RUN}_2steps.json", f"{RUN}_2steps.safetensors", f"{RUN}_2steps.state", f"{RUN}_3steps.state",
    ]  # fmt: skip


def test_an_overwriting_run_that_was_stopped_does_not_resume_the_old_run(finished, train_main, monkeypatch):
    """With both --resume and --overwrite, although the settings would allow resuming the checkpoints that it replaces."""
    from sliders.system.signals import Stopped

    def stop(*_):
        raise Stopped(signal.SIGTERM)

    argv, settings = finished
    kept = sorted(p.name for p in settings.run_dir.glob("*.safetensors"))
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_encode", stop)
        assert train_main([*argv, "--overwrite", "--lr", "5e-3"]) == 143
    assert sorted(p.name for p in settings.run_dir.glob("*.safetensors")) == kept
    assert not checkpoints_of(settings)
    assert train_main([*argv, "--overwrite", "--lr", "5e-3", "--resume", "--iterations", "2"]) == 0
    assert list(checkpoints_of(settings)) == [2, 1]
    assert train_main([*argv, "--overwrite", "--lr", "5e-3", "--resume", "--iterations", "3"]) == 0
    assert list(checkpoints_of(settings)) == [3, 2]


def test_resuming_with_another_rank_names_the_existing_run(finished, train_main, capsys):
    argv, _ = finished
    assert train_main([*argv, "--resume", "--rank", "2", "--dry_run"]) == 0
    assert f"from step 1 ({RUN} has another rank, alpha or training_method)" in capsys.readouterr().out


def test_a_checkpoint_from_before_there_were_patterns_is_resumed(finished):
    """Its header lacks the keys that have come since."""
    argv, _ = finished
    plan = make_plan(settings_of([*argv, "--resume"]))
    assert plan.checkpoint is not None
    assert not {"include", "exclude", "factor"} & plan.checkpoint.header["run"]["network"].keys()


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path, train_main, capsys):
    assert train_main(experiment(tmp_path / "run", iterations=1, flags=["--resume"])) == 0
    assert "there is no checkpoint: from step 1" in capsys.readouterr().out


def spoil(path, place):
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("place", [0, 20, 60, 3000, -1])
def test_one_flipped_bit_is_detected(finished, place):
    _, settings = finished
    path = checkpoints_of(settings)[4]
    spoil(path, place)
    assert read_checkpoint(path) is None
    assert newest_checkpoint(settings)[0].step == 3


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(finished, train_main, capsys):
    argv, settings = finished
    wanted = load_file(settings.run_dir / f"{RUN}_last.safetensors")
    checkpoints_of(settings)[4].write_bytes(checkpoints_of(settings)[4].read_bytes()[:-7])
    assert train_main([*argv, "--resume"]) == 0
    assert f"{RUN}_4steps.state is damaged and ignored" in capsys.readouterr().out
    found = load_file(settings.run_dir / f"{RUN}_last.safetensors")
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    for path in checkpoints_of(settings).values():
        path.write_bytes(b"")
    assert train_main([*argv, "--resume"]) == 2
    error = capsys.readouterr().err
    assert "4steps.state" in error and "3steps.state are damaged" in error and "--overwrite" in error


def test_loading_a_checkpoint_runs_no_code(tmp_path):
    """Tensors are loaded with weights_only, even from a file whose checksum is correct."""
    import pickle

    from sliders.formats.checkpoint import write_checkpoint

    path = tmp_path / "bomb.state"
    write_checkpoint(path, {"step": 1}, {"master": Bomb()})
    with pytest.raises(pickle.UnpicklingError):
        read_checkpoint(path).tensors()
    assert not (tmp_path / "ran").exists()


CHANGED = {
    "layers": ([], {"network": {"type": "lierla"}}, "network.type was \"c3lier\""),
    "algorithm": ([], {"network": {"algo": "loha"}}, 'network.algo was "lora" and is now "loha"'),
    "included layers": ([], {"network": {"include": ["*ff*"]}}, "network.include was nothing"),
    "excluded layers": ([], {"network": {"exclude": ["mid*"]}}, 'network.exclude was nothing and is now ["mid*"]'),
    "prompt": ([], {"prompts": [{"target": "a", "resolution": 64}]}, "prompts 1."),
    "seed": (["--seed", "7"], {}, "train.seed was 0 and is now 7"),
    "optimizer": (["--optimizer", "lion8bit"], {}, 'train.optimizer was "adamw" and is now "lion8bit"'),
    "scales": (["--scales", "-2, -1, 1, 3"], {}, "scales 4 was 2.0 and is now 3.0"),
    "model": ([], {"pretrained_model": {"name_or_path": "other/model"}}, "pretrained_model.name_or_path was"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGED)
def test_another_run_is_refused_and_the_difference_named(finished, tmp_path, train_main, capsys, change):
    flags, overrides, said = CHANGED[change]
    _, settings = finished
    argv = experiment(tmp_path / "run", 4, 1, flags=[*flags, "--resume"], **overrides)
    assert train_main(argv) == 2
    error = capsys.readouterr().err
    assert said in error and "--overwrite" in error
    assert list(checkpoints_of(settings)) == [4, 3]


def test_a_changed_image_is_refused_and_named(finished, tmp_path, train_main, capsys):
    argv, _ = finished
    disc((64, 64), 0.1).save(tmp_path / "data" / "low" / "two.png")
    assert train_main([*argv, "--resume"]) == 2
    assert "images.low/two.png was" in capsys.readouterr().err


def test_other_weights_under_the_same_name_are_refused(finished, tmp_path):
    from sliders.models.sdxl.family import SDXL_FAMILY
    from sliders.system.errors import InputError

    argv, _ = finished
    settings = settings_of([*argv, "--resume"])
    model = SDXL_FAMILY.load(settings.pretrained_model, torch.float32)
    with torch.no_grad():
        model.denoiser.conv_in.weight += 1
    trainer = Trainer(make_plan(settings), model)
    with pytest.raises(InputError, match="model was"):
        trainer.resume()


def test_images_are_not_needed_after_caching(tmp_path):
    settings = settings_of(experiment(tmp_path / "run", iterations=3, per_steps=1))
    trainer = Trainer(make_plan(settings))
    shutil.rmtree(tmp_path / "data")
    assert len(trainer.run().losses) == 3
