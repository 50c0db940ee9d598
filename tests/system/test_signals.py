"""Signals sent to real processes: what the processes finish, what they leave behind, and their exit status."""

import os
import shlex
import signal
from functools import partial

import pytest
from experiments import RUN, experiment, settings_of
from processes import STEPS_SHOWN, Training, hold_at
from safetensors import safe_open
from sliders.formats.checkpoint import checkpoints_of, newest_checkpoint
from sliders.system.command import resume_command
from sliders.system.signals import Interrupts, Stopped

SIGNALS = [signal.SIGINT, signal.SIGTERM]
STOPPING = [*SIGNALS, signal.SIGHUP]  # a terminal sends SIGHUP when it is closed


def files_of(settings):
    """Names of the files in the run's folder. Every slider is complete, and no temporary or lock file is left."""
    names = sorted(p.name for p in settings.run_dir.iterdir())
    assert not [name for name in names if name.endswith((".tmp", ".lock"))]
    for path in settings.run_dir.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert len(list(file.keys())) == 3 * 133
    return names


@pytest.mark.parametrize("signum", STOPPING)
def test_the_first_signal_finishes_the_step_and_saves(tmp_path, train_main, signum):
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=5000, flags=["--name", "probe"])
    settings, training = settings_of(argv), Training(argv, tmp_path / "log")
    assert training.until_it_trains().signal(signum).status() == 128 + signum
    (step,) = checkpoints_of(settings)
    assert step > 0
    assert files_of(settings) == sorted(
        [*(f"{RUN}_{step}steps.{end}" for end in ("json", "safetensors", "state")), "logs"]
    )
    command = shlex.split(training.output.strip().splitlines()[-1])
    assert command[:2] == ["uv", "run"]
    assert train_main([*command[3:], "--iterations", str(step + 1)]) == 0


def heed_repeats(argv, log, environment, threads):
    """The training, but every signal counts, however soon it follows another."""
    from processes import _train
    from sliders.system import signals

    signals.REPEATED_WITHIN = 0.0
    _train(argv, log, environment, threads)


def test_the_second_signal_stops_at_once(tmp_path):
    """Both arrive before a step can end: the process is suspended while they are sent."""
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=1)
    settings, training = settings_of(argv), Training(argv, tmp_path / "log", prepare=heed_repeats)
    training.until(lambda: checkpoints_of(settings)).signal(signal.SIGSTOP)
    before = newest_checkpoint(settings)[0].step
    training.signal(signal.SIGTERM).signal(signal.SIGINT).signal(signal.SIGCONT)
    assert training.status() in (130, 143)
    files_of(settings)
    assert newest_checkpoint(settings)[0].step in (before, before + 1)  # a save may have been in progress


def test_one_signal_that_arrives_twice_is_one(tmp_path):
    """As under `uv run`, which forwards a signal that the child, in the same process group, already has."""
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=5000)
    settings, training = settings_of(argv), Training(argv, tmp_path / "log")
    training.until_it_trains().signal(signal.SIGSTOP)
    training.signal(signal.SIGTERM).signal(signal.SIGINT).signal(signal.SIGCONT)
    assert training.status() in (130, 143)
    assert len(checkpoints_of(settings)) == 1
    files_of(settings)


hold_the_reading = partial(hold_at, "sliders.train.journal:Journal:write", 1)
hold_the_picture = partial(hold_at, "sliders.sample.preview:Previews:pictures", 1)
hold_the_encoder = partial(hold_at, "sliders.models.base:Model:encode_image", 2)


@pytest.mark.parametrize("hold", [hold_the_reading, hold_the_picture], ids=["reading the loss", "drawing a preview"])
def test_the_steps_are_saved_wherever_in_the_loop_the_signal_arrives(tmp_path, hold):
    """On a GPU the process spends nearly all of its time waiting for the loss. A preview is not finished."""
    argv = experiment(
        tmp_path / "run", iterations=5000, per_steps=5000, logging={"log_every": 2},
        preview={"prompts": ["a disc"], "every": 2, "steps": 1},
    )  # fmt: skip
    settings, training = settings_of(argv), Training(argv, tmp_path / "log", prepare=hold)
    training.until((tmp_path / "held").exists).signal(signal.SIGTERM)
    if hold is hold_the_reading:
        training.until_it_says("finishing this step")
        (tmp_path / "go").touch()
    assert training.status() == 143
    assert list(checkpoints_of(settings)) == [2]
    files_of(settings)


def through_a_pipe(argv, log, environment, threads):
    """The training, with its output going into the pipe beside its log."""
    from processes import _train

    _train(argv, log.parent / "pipe", environment, threads)


def test_no_step_is_lost_when_the_reader_of_the_output_ends(tmp_path):
    """Ctrl-C under `… 2>&1 | tee log` also ends tee."""
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=5000)
    os.mkfifo(tmp_path / "pipe")
    settings, training = settings_of(argv), Training(argv, tmp_path / "log", prepare=through_a_pipe)
    with (tmp_path / "pipe").open() as reader:
        assert any(int(steps) > 0 for line in reader for steps in STEPS_SHOWN.findall(line))
    assert training.signal(signal.SIGINT).status() == 130
    assert len(checkpoints_of(settings)) == 1
    files_of(settings)


@pytest.mark.parametrize("signum", SIGNALS)
def test_while_images_are_encoded_a_signal_ends_the_run_at_once_and_leaves_nothing(tmp_path, signum):
    argv = experiment(tmp_path / "run")
    training = Training(argv, tmp_path / "log", prepare=hold_the_encoder)
    assert training.until((tmp_path / "held").exists).signal(signum).status() == 128 + signum
    assert "encoding images" in training.output
    assert "training" not in training.output.partition("encoding")[2].partition("stopped")[0]
    assert not (tmp_path / "run" / "models").exists()
    assert "--resume" in training.output


def hold_the_next_save(argv, log, environment, threads):
    """The training, but its first checkpoint, written but not yet renamed, waits until the file `go` exists."""
    import time
    from contextlib import contextmanager

    from processes import _train
    from sliders.formats import checkpoint

    atomic_write = checkpoint.atomic_write

    @contextmanager
    def held(path):
        with atomic_write(path) as temporary:
            yield temporary
            (log.parent / "saving").touch()
            while not (log.parent / "go").exists():
                time.sleep(0.001)

    checkpoint.atomic_write = held
    _train(argv, log, environment, threads)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_during_a_save_lets_the_save_finish(tmp_path, signum):
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=3)
    settings, training = settings_of(argv), Training(argv, tmp_path / "log", prepare=hold_the_next_save)
    training.until((tmp_path / "saving").exists).signal(signum)
    training.until_it_says("finishing this step")
    (tmp_path / "go").touch()
    assert training.status() == 128 + signum
    assert list(checkpoints_of(settings)) == [3]
    files_of(settings)


def in_one_group(argv, log, environment, threads):
    """The training, in the process group of the first run that was started this way."""
    from processes import _train

    group = log.parent / "group"
    if not group.exists():
        os.setpgid(0, 0)
        group.write_text(str(os.getpid()))
    else:
        os.setpgid(0, int(group.read_text()))
    _train(argv, log, environment, threads)


def test_two_processes_of_one_group_each_finish(tmp_path):
    """A terminal's Ctrl-C and a scheduler signal all processes of a group."""
    runs = [experiment(tmp_path / name, iterations=5000, per_steps=5000) for name in ("a", "b")]
    trainings = []
    for number, argv in enumerate(runs):
        training = Training(argv, tmp_path / f"log{number}", prepare=in_one_group)
        trainings.append(training.until((tmp_path / "group").exists))
    for training in trainings:
        training.until_it_trains()
    os.killpg(trainings[0].process.pid, signal.SIGINT)
    assert [training.status() for training in trainings] == [130, 130]
    for argv in runs:
        assert len(checkpoints_of(settings_of(argv))) == 1
        files_of(settings_of(argv))


def test_two_runs_into_one_folder_are_refused_and_a_killed_run_leaves_no_lock(tmp_path, train_main, capsys):
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=5000)
    first = Training(argv, tmp_path / "log")
    first.until_it_trains()
    for flags in ([], ["--resume"], ["--overwrite"]):
        assert train_main([*argv, *flags]) == 2
        assert "another process is training into it" in capsys.readouterr().err
    first.signal(signal.SIGKILL).status()
    assert train_main([*argv, "--iterations", "1"]) == 0
    files_of(settings_of(argv))


def test_on_windows_the_command_to_resume_keeps_the_installed_pytorch(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    words = ["--folders", "a, b", "--folder_main", r"C:\me\robe(2)", "--name", "it's $x", "--overwrite"]
    command = resume_command(["train_lora-scale-xl.py", *words])
    assert command.startswith("uv run --no-sync train_lora-scale-xl.py ")
    # within single quotes, PowerShell interprets only a doubled single quote, as one
    wanted = r"--folders 'a, b' --folder_main 'C:\me\robe(2)' --name 'it''s $x' --overwrite --resume"
    assert command.endswith(f"train_lora-scale-xl.py {wanted}")


def wrapped_by_a_library():
    """As pydantic wraps what is raised in its callbacks."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException as error:
        raise ValueError("could not serialise") from error


def test_a_signal_that_a_library_turns_into_its_own_error_still_stops_the_run():
    with pytest.raises(Stopped) as stopped, Interrupts():
        wrapped_by_a_library()
    assert stopped.value.status == 143
    reached = []
    with pytest.raises(Stopped), Interrupts() as interrupts, interrupts.deferred():
        with interrupts.at_once():
            wrapped_by_a_library()
        reached.append("what follows a preview")
    assert reached
    with pytest.raises(ValueError, match="another"), Interrupts():
        raise ValueError("another")
