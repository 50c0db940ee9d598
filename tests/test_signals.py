"""SIGINT and SIGTERM to real processes: what they finish, what they leave, and how they end."""

import os
import shlex
import signal
from functools import partial

import pytest
from conftest import load_script
from processes import Training
from safetensors import safe_open
from sliders.interrupts import Interrupts, Stopped
from sliders.states import newest_state, states_of
from test_resume import RUN, experiment, settings_of

SIGNALS = [signal.SIGINT, signal.SIGTERM]
STOPPING = [*SIGNALS, signal.SIGHUP]  # the last as a terminal sends it that is closed


def is_training(training):
    return lambda: "step/s" in training.output


def files_of(settings):
    """Names in the run's folder; every slider among them is whole, and nothing is half-written."""
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
    assert training.until(is_training(training)).signal(signum).status() == 128 + signum
    (step,) = states_of(settings)
    assert step > 0
    assert files_of(settings) == sorted(
        [*(f"{RUN}_{step}steps.{end}" for end in ("json", "safetensors", "state")), "logs"]
    )
    command = shlex.split(training.output.strip().splitlines()[-1])
    assert command[:2] == ["uv", "run"]
    assert train_main([*command[3:], "--iterations", str(step + 1)]) == 0


def heed_repeats(argv, log, environment, threads):
    """The training, but no signal is too soon after another to count."""
    from processes import _train
    from sliders import interrupts

    interrupts.REPEATED_WITHIN = 0.0
    _train(argv, log, environment, threads)


def test_the_second_signal_stops_at_once(tmp_path):
    """Both come before a step can end: the process is stopped meanwhile, and wakes up with the two of them."""
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=1)
    settings, training = settings_of(argv), Training(argv, tmp_path / "log", prepare=heed_repeats)
    training.until(lambda: states_of(settings)).signal(signal.SIGSTOP)
    before = newest_state(settings)[0].step
    training.signal(signal.SIGTERM).signal(signal.SIGINT).signal(signal.SIGCONT)
    assert training.status() in (130, 143)
    files_of(settings)
    assert newest_state(settings)[0].step in (before, before + 1)  # a save may have been under way


def test_one_signal_that_arrives_twice_is_one(tmp_path):
    """As a group's does under `uv run`, which hands its own on to the child that has it already."""
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=5000)
    settings, training = settings_of(argv), Training(argv, tmp_path / "log")
    training.until(is_training(training)).signal(signal.SIGSTOP)
    training.signal(signal.SIGTERM).signal(signal.SIGINT).signal(signal.SIGCONT)
    assert training.status() in (130, 143)
    assert len(states_of(settings)) == 1
    files_of(settings)


def hold_at(target, argv, log, environment, threads):
    """The training, but `target`, a method, waits until it is told to go on by a file."""
    import importlib
    import time

    from processes import _train

    module, cls, name = target.split(":")
    owner = getattr(importlib.import_module(module), cls)
    method = getattr(owner, name)

    def held(self, *arguments, **named):
        (log.parent / "held").touch()
        while not (log.parent / "go").exists():
            time.sleep(0.001)
        return method(self, *arguments, **named)

    setattr(owner, name, held)
    _train(argv, log, environment, threads)


hold_the_reading = partial(hold_at, "sliders.journal:Journal:write")
hold_the_picture = partial(hold_at, "sliders.trainer:Trainer:preview")


@pytest.mark.parametrize("hold", [hold_the_reading, hold_the_picture], ids=["reading the loss", "drawing a picture"])
def test_wherever_in_the_loop_it_comes_the_steps_are_saved(tmp_path, hold):
    """On a GPU the process waits for the loss nearly all of its time; and a picture is not waited for."""
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
    assert list(states_of(settings)) == [2]
    files_of(settings)


def through_a_pipe(argv, log, environment, threads):
    """The training, but what it prints goes into the pipe beside its log."""
    from processes import _train

    _train(argv, log.parent / "pipe", environment, threads)


def test_a_reader_that_goes_away_takes_no_steps_with_it(tmp_path):
    """Ctrl-C under `… 2>&1 | tee log` ends tee too."""
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=5000)
    os.mkfifo(tmp_path / "pipe")
    settings, training = settings_of(argv), Training(argv, tmp_path / "log", prepare=through_a_pipe)
    with (tmp_path / "pipe").open() as reader:
        assert any("step/s" in line for line in reader)
    assert training.signal(signal.SIGINT).status() == 130
    assert len(states_of(settings)) == 1
    files_of(settings)


@pytest.mark.parametrize("signum", SIGNALS)
def test_while_images_are_cached_it_ends_at_once_and_leaves_nothing(tmp_path, signum):
    argv = experiment(tmp_path / "run", prompts=[{"target": "", "resolution": 1024}])
    training = Training(argv, tmp_path / "log")
    assert training.until_it_says("encoding images").signal(signum).status() == 128 + signum
    assert "training" not in training.output.partition("encoding")[2].partition("stopped")[0]
    assert not (tmp_path / "run" / "models").exists()
    assert "--resume" in training.output


def hold_the_next_save(argv, log, environment, threads):
    """The training, but its first state waits, written and not yet named, until it is told to go on by a file."""
    import time
    from contextlib import contextmanager

    from processes import _train
    from sliders import states

    written_whole = states.written_whole

    @contextmanager
    def held(path):
        with written_whole(path) as temporary:
            yield temporary
            (log.parent / "saving").touch()
            while not (log.parent / "go").exists():
                time.sleep(0.001)

    states.written_whole = held
    _train(argv, log, environment, threads)


@pytest.mark.parametrize("signum", SIGNALS)
def test_during_a_save_it_finishes_the_save(tmp_path, signum):
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=3)
    settings, training = settings_of(argv), Training(argv, tmp_path / "log", prepare=hold_the_next_save)
    training.until((tmp_path / "saving").exists).signal(signum)
    training.until_it_says("finishing this step")
    (tmp_path / "go").touch()
    assert training.status() == 128 + signum
    assert list(states_of(settings)) == [3]
    files_of(settings)


def in_one_group(argv, log, environment, threads):
    """The training, in the process group of the first that came here."""
    from processes import _train

    group = log.parent / "group"
    if not group.exists():
        os.setpgid(0, 0)
        group.write_text(str(os.getpid()))
    else:
        os.setpgid(0, int(group.read_text()))
    _train(argv, log, environment, threads)


def test_two_processes_of_one_group_each_finish(tmp_path):
    """As a terminal's Ctrl-C or a scheduler sends it: to all of them at once."""
    runs = [experiment(tmp_path / name, iterations=5000, per_steps=5000) for name in ("a", "b")]
    trainings = []
    for number, argv in enumerate(runs):
        training = Training(argv, tmp_path / f"log{number}", prepare=in_one_group)
        trainings.append(training.until(is_training(training)))
    os.killpg(trainings[0].process.pid, signal.SIGINT)
    assert [training.status() for training in trainings] == [130, 130]
    for argv in runs:
        assert len(states_of(settings_of(argv))) == 1
        files_of(settings_of(argv))


def test_two_runs_in_one_folder_and_a_lock_that_a_crash_does_not_leave(tmp_path, train_main, capsys):
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=5000)
    first = Training(argv, tmp_path / "log")
    first.until(is_training(first))
    for flags in ([], ["--resume"], ["--overwrite"]):
        assert train_main([*argv, *flags]) == 2
        assert "another process is training into it" in capsys.readouterr().err
    first.signal(signal.SIGKILL).status()
    assert train_main([*argv, "--iterations", "1"]) == 0
    files_of(settings_of(argv))


def test_on_windows_the_command_to_go_on_keeps_the_pytorch_that_is_there(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    words = ["--folders", "a, b", "--folder_main", r"C:\me\robe(2)", "--name", "it's $x", "--overwrite"]
    told = load_script("train_lora-scale-xl").resume_command(words)
    assert told.startswith("uv run --no-sync ")
    # in PowerShell nothing within single quotes has a meaning but two of them, which are one
    wanted = r"--folders 'a, b' --folder_main 'C:\me\robe(2)' --name 'it''s $x' --overwrite --resume"
    assert told.endswith(f"train_lora-scale-xl.py {wanted}")


def wrapped_by_a_library():
    """As pydantic wraps whatever is raised in a callback of its own."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException as error:
        raise ValueError("could not serialise") from error


def test_a_signal_that_a_library_makes_an_error_of_is_still_one():
    with pytest.raises(Stopped) as stopped, Interrupts():
        wrapped_by_a_library()
    assert stopped.value.status == 143
    reached = []
    with pytest.raises(Stopped), Interrupts() as interrupts, interrupts.deferred():
        with interrupts.at_once():
            wrapped_by_a_library()
        reached.append("what comes after a picture")
    assert reached
    with pytest.raises(ValueError, match="another"), Interrupts():
        raise ValueError("another")
