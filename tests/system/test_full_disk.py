"""Writes that fail: every slider and checkpoint under its final name is complete, and the run goes on."""

import errno
import io
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import write_experiment
from diffusers import AutoencoderKL
from experiments import RUN, VARIED, experiment, settings_of
from processes import Training
from safetensors import safe_open
from sliders.config.prompts import PromptSet
from sliders.config.settings import load_settings
from sliders.formats.checkpoint import checkpoints_of, read_checkpoint
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer


class FailingDisk:
    """Counts the writes, syncs, opens and renames of this process; number `fails` raises ENOSPC."""

    def __init__(self, monkeypatch):
        self.count, self.fails = 0, 0
        for name in ("fsync", "replace", "open"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        opened = io.open
        monkeypatch.setattr(io, "open", lambda *a, **k: self._watched(opened(*a, **k)))

    def _watched(self, file):
        return WatchedFile(self, file) if file.writable() else file

    def _counted(self, function):
        def counted(*arguments, **keywords):
            self.tick()
            return function(*arguments, **keywords)

        return counted

    def tick(self):
        self.count += 1
        if self.count == self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail_at(self, number):
        self.count, self.fails = 0, number


class WatchedFile:
    def __init__(self, disk, file):
        self._disk, self._file = disk, file

    def write(self, content):
        """Half of the content is written before the disk is full."""
        try:
            self._disk.tick()
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def check_whole(settings):
    """Asserts that every file under its final name is complete. Returns the steps of the checkpoints."""
    assert not list(settings.run_dir.glob("*.tmp"))
    for path in settings.run_dir.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert all(file.get_tensor(key).isfinite().all() for key in file.keys())  # noqa: SIM118
    checkpoints = checkpoints_of(settings)
    assert all(read_checkpoint(path) for path in checkpoints.values())
    return list(checkpoints)


def test_each_write_of_a_save_may_fail_in_turn(tmp_path, monkeypatch, capsys):
    """The next save, to the same disk, succeeds."""
    settings = settings_of(experiment(tmp_path / "run", iterations=100, per_steps=1))
    trainer = Trainer(make_plan(settings))
    trainer.step(0)
    trainer.done = 1
    trainer._save_midway()
    disk = FailingDisk(monkeypatch)
    failures = 0
    while True:
        failures += 1
        trainer.done += 1
        disk.fail_at(failures)
        trainer._save_midway()
        done = disk.count < failures
        disk.fail_at(0)
        newest = check_whole(settings)[0]
        said = capsys.readouterr().out
        if done:
            break
        assert "could not be saved (No space left on device): training goes on" in said
    assert failures > 12
    assert newest == trainer.done


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 16 MiB, which a test can fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if sys.platform != "linux" or not mount:
        pytest.skip("needs Linux")
    if subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting needs more rights")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return ballast


def wait_before_saves(argv, log, environment, threads):
    """The training, but before its save N it makes the file `atN` and waits until there is one named `goN`, or `free`."""
    import time

    from processes import _train
    from sliders.train.outputs import Outputs

    save, saves = Outputs.save, []

    def held(self, *arguments):
        saves.append(None)
        (log.parent / f"at{len(saves)}").touch()
        while not ((log.parent / f"go{len(saves)}").exists() or (log.parent / "free").exists()):
            time.sleep(0.001)
        return save(self, *arguments)

    Outputs.save = held
    _train(argv, log, environment, threads)


def test_a_full_disk_fails_a_run_only_if_the_last_slider_is_lost(tmp_path, small_disk):
    argv = experiment(
        tmp_path / "run", iterations=5000, per_steps=100, flags=["--save_path", str(small_disk)],
        save={"precision": "bfloat16"}, train={"optimizer": "lion8bit"},
    )  # fmt: skip
    few = [*argv, "--iterations", "10", "--per_steps", "2"]
    settings, training = settings_of(few), Training(few, tmp_path / "log", prepare=wait_before_saves)

    def let_save(number):
        (tmp_path / f"go{number}").touch()
        training.until((tmp_path / f"at{number + 1}").exists)

    training.until((tmp_path / "at1").exists)
    let_save(1)
    assert max(checkpoints_of(settings)) == 2
    ballast = fill(small_disk)
    let_save(2)
    assert "could not be saved (No space left on device)" in training.output
    ballast.unlink()
    let_save(3)
    assert max(checkpoints_of(settings)) == 6
    fill(small_disk)
    (tmp_path / "free").touch()
    assert training.status() == 2
    error = training.output.strip().splitlines()[-1]
    assert error.startswith("error: ") and "the last slider could not be saved" in error and "--resume" in error
    (small_disk / "ballast").unlink()
    resumed = Training([*few, "--resume"], tmp_path / "log2")
    assert resumed.status() == 0, resumed.output
    assert check_whole(settings)[0] == 10
    assert (settings.run_dir / f"{RUN}_last.safetensors").exists()


def test_runs_that_will_not_fit_are_refused_before_anything_is_written(tmp_path, small_disk, train_main, capsys):
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=1, flags=["--save_path", str(small_disk)])
    assert train_main(argv) == 2
    error = capsys.readouterr().err
    assert "16.0 MiB free, but 5000 slider(s) of 0.5 MiB and 3 checkpoint(s) of 1.5 MiB" in error
    assert not list(small_disk.iterdir())


SAID = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.10 GiB is free."
)
CASES = {
    "plain": ({}, {}, ["other.gradient_checkpointing: true", "pretrained_model.quantize: nf4"]),
    "checkpointed": ({"gradient_checkpointing": True}, {}, ["pretrained_model.quantize: nf4", "train.optimizer: adamw8bit"]),
    "small pictures": ({}, {"resolution": 256}, ["pretrained_model.quantize: nf4", "train.optimizer: adamw8bit"]),
    "many pairs": (
        {"gradient_checkpointing": True}, {"batch_size": 16}, ["batch_size: 8 in the prompts", "pretrained_model.quantize: nf4"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_out_of_memory_names_the_two_settings_that_help_most(tmp_path, case):
    from sliders.models.sdxl.family import SDXL_FAMILY
    from sliders.train.resources import out_of_memory

    other, prompt, wanted = CASES[case]
    argv = write_experiment(tmp_path, prompts=[{"target": "", "resolution": 1024}], other=other)
    (settings,), _ = load_settings(argv)
    prompts = tuple(PromptSet.model_validate({**p.model_dump(), **prompt}) for p in settings.prompts)
    settings = settings.model_copy(update={"prompts": prompts})
    sentence = out_of_memory(settings, SDXL_FAMILY, torch.OutOfMemoryError(SAID), 22 * 2**30)
    assert f"set {wanted[0]}, or {wanted[1]}, and" in sentence
    assert "2.50 GiB more was needed after a peak of 22.0 GiB" in sentence and "GPU of 23.64 GiB" in sentence


SMALLEST = [{"target": "", "resolution": 64}]
SIZES = ["resolution: 96 in the prompts", "resolution: 64 in the prompts"]
PHASES = {
    "encoding": (VARIED, SIZES, "while encoding"),
    "encoding the smallest": (SMALLEST, ["smaller images in the folders"], "while encoding"),
    "placing": (VARIED, ["pretrained_model.quantize: nf4", "a smaller network.rank"], "while moving the model there"),
    "training": (VARIED, ["pretrained_model.quantize: nf4", "train.optimizer: adamw8bit"], "while training"),
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_out_of_memory_ends_a_run_with_advice_for_that_phase(tmp_path, train_main, monkeypatch, capsys, phase):
    prompts, wanted, said = PHASES[phase]

    def full(*_, **__):
        raise torch.OutOfMemoryError(SAID)

    places = {
        "encoding": "data.sources.LatentCache",
        "placing": "train.trainer.quantize",
        "training": "train.step.Step.backward",
    }
    monkeypatch.setattr(f"sliders.{places[phase.split()[0]]}", full)
    assert train_main(experiment(tmp_path / "run", prompts=prompts)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"set {', or '.join(wanted)}, and" in error
    assert said in error and "--resume" not in error


def test_out_of_memory_after_a_save_says_which_settings_may_change(tmp_path, train_main, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError(SAID)

    argv = experiment(tmp_path / "run", iterations=1)
    assert train_main(argv) == 0
    monkeypatch.setattr("sliders.train.step.Step.backward", full)
    assert train_main([*argv, "--resume", "--iterations", "9"]) == 2
    assert "with --resume only settings of `other` may change" in capsys.readouterr().err


def test_a_preview_gets_the_memory_of_the_cuda_graphs(tmp_path, train_main, monkeypatch, capsys):
    """The GPU has room for the VAE only after the CUDA graphs are freed; then the CPU need not decode."""
    attempts, freed = [], []
    decode = AutoencoderKL.decode

    def full_at_first(vae, *args, **kwargs):
        attempts.append(len(freed))
        if not freed:
            raise torch.OutOfMemoryError(SAID)
        return decode(vae, *args, **kwargs)

    monkeypatch.setattr("sliders.train.step.Step.free_memory", lambda _: freed.append(True))
    monkeypatch.setattr(AutoencoderKL, "decode", full_at_first)
    argv = experiment(tmp_path / "run", iterations=1, preview={"prompts": ["a disc"], "steps": 1})
    assert train_main(argv) == 0
    assert attempts[0] == 0 and set(attempts[1:]) == {1}
    assert "no memory left for a picture" not in capsys.readouterr().out
    assert (settings_of(argv).run_dir / f"{RUN}_last.preview.png").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(SAID), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_training_goes_on_if_a_preview_cannot_be_made(tmp_path, train_main, monkeypatch, capsys, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("sliders.sample.preview.Previews.pictures", full)
    argv = experiment(tmp_path / "run", iterations=3, per_steps=2, preview={"prompts": ["a disc"]})
    assert train_main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("warning: ") == out.count(" picture ") == 2 and "saved   " in out
    assert check_whole(settings_of(argv)) == [3, 2]


def test_a_run_succeeds_if_its_page_does_not_fit(tmp_path, train_main, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sliders.report.page.render", full)
    argv = experiment(tmp_path / "run", iterations=2, preview={"prompts": ["a disc"], "steps": 1})
    assert train_main(argv) == 0
    assert "its page could not be saved (No space left on device)" in capsys.readouterr().out
    folder = settings_of(argv).run_dir
    assert (folder / f"{RUN}_last.preview.png").exists()
    assert not [*folder.glob("*.html"), *folder.glob("*.tmp")]


def test_a_page_is_written_if_the_images_for_its_card_are_gone(tmp_path, train_main, monkeypatch, capsys):
    """They are removed while the last step is saved."""
    save = Trainer._save_last

    def save_and_remove(trainer):
        save(trainer)
        shutil.rmtree(tmp_path / "data")

    monkeypatch.setattr(Trainer, "_save_last", save_and_remove)
    argv = experiment(tmp_path / "run", iterations=2, preview={"prompts": ["a disc"], "steps": 1})
    assert train_main(argv) == 0
    assert "note: no report card was made: " in capsys.readouterr().out
    page = settings_of(argv).run_dir / f"{RUN}_last.html"
    assert "Report card" not in page.read_text(encoding="utf-8")


def test_a_slider_is_saved_even_if_its_checkpoint_does_not_fit(tmp_path, train_main, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sliders.train.outputs.write_checkpoint", full)
    argv = experiment(tmp_path / "run", iterations=3, per_steps=2)
    assert train_main(argv) == 2
    said = capsys.readouterr()
    assert "step 2: the checkpoint could not be saved (No space left on device): training goes on" in said.out
    assert (
        f"the checkpoint could not be saved (No space left on device); {RUN}_last.safetensors is complete" in said.err
    )
    assert sorted(p.name for p in settings_of(argv).run_dir.glob("*.safetensors")) == [
        f"{RUN}_2steps.safetensors", f"{RUN}_last.safetensors",
    ]  # fmt: skip


def test_several_runs_must_fit_together(tmp_path):
    from sliders.system.errors import InputError
    from sliders.train.resources import DiskNeed, check_disk

    share = int(shutil.disk_usage(tmp_path).free * 0.6)
    needs = [DiskNeed(tmp_path / name, sliders=1, slider=share, checkpoints=0, checkpoint=0) for name in "ab"]
    for need in needs:
        check_disk([need])
    with pytest.raises(InputError, match=r"2 slider\(s\)"):
        check_disk(needs)
