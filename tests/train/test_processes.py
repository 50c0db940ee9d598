"""Several processes that train one slider on the CPU: what they learn, and what is left when one of them ends."""

import os
import signal

import pytest
import torch
from campaigns.kill_processes import start_processes
from experiments import experiment, make_text_trainer, settings_of
from safetensors.torch import load_file
from sliders.formats.checkpoint import checkpoints_of, newest_checkpoint
from sliders.system.errors import InputError
from sliders.system.lock import check_unlocked, locked
from sliders.system.processes import Together


def finish(argv, folder, count=2):
    """Runs to the end. Returns the newest checkpoint's weights, and what each process printed."""
    trainings = start_processes(argv, folder, count)
    assert [t.status() for t in trainings] == [0] * count, "".join(t.output for t in trainings)
    return newest_checkpoint(settings_of(argv))[0].tensors()["master"], [t.output for t in trainings]


def prompts(batch_size, resolution=64):
    return [{"target": "a disc", "resolution": resolution, "dynamic_resolution": True, "batch_size": batch_size}]


# with a large eps, AdamW does not magnify the rounding of gradients near 0
CLIPPED = {"train": {"max_grad_norm": 0.2, "scales_per_step": 2, "optimizer_args": "eps=1e-3"}}


def test_two_processes_of_one_pair_learn_what_one_of_two_pairs_learns(tmp_path):
    """To the rounding of float32, with clipping. The second process prints nothing."""
    argv = [experiment(tmp_path / str(n), 10, 100, prompts=prompts(n), **CLIPPED) for n in (1, 2)]
    together, (_, second) = finish(argv[0], tmp_path / "1")
    alone, _ = finish(argv[1], tmp_path / "2", count=1)
    assert (together - alone).norm() < 1e-6 * alone.norm()
    assert second == ""
    sliders = [load_file(next((tmp_path / n).rglob("*_last.safetensors"))) for n in "12"]
    assert sliders[0].keys() == sliders[1].keys()


@pytest.mark.parametrize("count", [2, 3])
def test_the_parts_of_all_processes_are_the_step_of_one(tmp_path, count):
    trainer = make_text_trainer(tmp_path)
    for step in range(5):
        rows = type(trainer.step.draw)(**{**vars(trainer.step.draw), "processes": count})(step).rows
        parts = [Together(rank, count).part(rows) for rank in range(count)]
        assert len({len(part) for part in parts}) == 1
        assert sorted(map(repr, rows)) == sorted(repr(row) for part in parts for row in part)


def test_a_run_continues_with_another_number_of_processes_and_says_so(tmp_path):
    argv = experiment(tmp_path / "run", 4, 2)
    finish(argv, tmp_path, count=1)
    _, (first, _) = finish([*argv, "--resume", "--iterations", "6"], tmp_path)
    assert "note: 1 process(es) before, 2 now" in first and "the learning rate follows" in first
    _, (alone,) = finish([*argv, "--resume", "--iterations", "7"], tmp_path, count=1)
    assert "note: 2 process(es) before, 1 now" in alone
    assert list(checkpoints_of(settings_of(argv))) == [7, 6]


@pytest.mark.parametrize("signalled", [(0, 1), (1,)], ids=["both", "the second"])
def test_a_signal_to_any_process_saves_and_ends_all(tmp_path, signalled):
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=5000)
    trainings = start_processes(argv, tmp_path, 2)
    trainings[0].until_it_trains()
    for rank in signalled:
        trainings[rank].signal(signal.SIGTERM)
    assert [t.status() for t in trainings] == [143, 143], trainings[0].output
    assert len(checkpoints_of(settings_of(argv))) == 1
    assert "accelerate launch --num_processes 2" in trainings[0].output
    assert trainings[1].output == ""


@pytest.mark.parametrize("killed", [0, 1])
def test_if_a_process_is_killed_the_other_ends_with_one_sentence_and_nothing_is_lost(tmp_path, killed):
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=1)
    trainings = start_processes(argv, tmp_path, 2)
    settings = settings_of(argv)
    trainings[0].until(lambda: checkpoints_of(settings))
    trainings[killed].signal(signal.SIGKILL).status()
    survivor = trainings[1 - killed]
    assert survivor.status() == 2, survivor.output
    assert survivor.output.count("error: ") == 1
    assert "another process of this run has ended" in survivor.output
    step = newest_checkpoint(settings)[0].step
    finish([*argv, "--resume", "--iterations", str(step + 1)], tmp_path)


def wrong_weights(argv, log, environment, threads):
    """The training, but in the second process one weight is wrong."""
    from processes import _train
    from sliders.train.step import Step

    update = Step.update

    def changed(self, loss):
        values = update(self, loss)
        with torch.no_grad():
            self.weights.master[0] += int(os.environ["RANK"])
        return values

    Step.update = changed
    _train(argv, log, environment, threads)


def bad_gradient(argv, log, environment, threads):
    """The training, but in the second process the third loss is not a number."""
    from processes import _train
    from sliders.train.step import Step

    forward, calls = Step.loss_of, []

    def broken(self, batch):
        calls.append(None)
        return forward(self, batch) * (float("nan") if os.environ["RANK"] == "1" and len(calls) == 3 else 1.0)

    Step.loss_of = broken
    _train(argv, log, environment, threads)


def out_of_memory(argv, log, environment, threads):
    """The training, but the second process has no memory for images."""
    from processes import _train
    from sliders.models.sdxl.model import SDXL

    encode = SDXL.encode_image

    def refused(self, picture):
        if os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.")
        return encode(self, picture)

    SDXL.encode_image = refused
    _train(argv, log, environment, threads)


@pytest.mark.parametrize(
    ("trouble", "sentence", "saved"),
    [
        (wrong_weights, "the weights are not the same in all 2 processes", []),
        (bad_gradient, "loss or gradient is not finite at step 3", [2]),
        (out_of_memory, "ran out of memory while encoding", []),
    ],
)
def test_trouble_in_one_process_ends_all_with_one_sentence(tmp_path, trouble, sentence, saved):
    argv = experiment(tmp_path / "run", iterations=5000, per_steps=5, logging={"log_every": 1})
    trainings = start_processes(argv, tmp_path, 2, trouble)
    assert [t.status() for t in trainings] == [2, 2]
    output = "".join(t.output for t in trainings)
    assert sentence in output and output.count("error: ") == 1
    assert list(checkpoints_of(settings_of(argv))) == saved


def test_only_the_first_process_looks_for_another_run(tmp_path, monkeypatch):
    """Looking takes the lock that a killed run left: processes that look at the same time would refuse each other."""
    with locked(tmp_path / "run"):
        with pytest.raises(InputError, match="another process is training"):
            check_unlocked(tmp_path / "run")
        monkeypatch.setenv("RANK", "1")
        check_unlocked(tmp_path / "run")


def test_wrong_input_is_said_once(tmp_path):
    argv = experiment(tmp_path / "run")
    for wrong in (["--lr", "-1"], ["--folders", "low, nowhere", "--scales", "1, 2"]):
        trainings = start_processes([*argv, *wrong], tmp_path, 2)
        assert [t.status() for t in trainings] == [2, 2]
        assert "".join(t.output for t in trainings).count("error: ") == 1
