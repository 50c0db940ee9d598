"""The captured step, with CUDA graphs replaced by cpu_graph.py. test_gpu.py tests it on a GPU."""

import copy
import weakref
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import make_scale_folders, write_experiment
from cpu_graph import Graph, Stream, capture, replace_cuda
from experiments import make_text_trainer, unchecked_plan
from sliders.adaptors import ALGORITHMS
from sliders.config.settings import load_settings
from sliders.fast import graphs as graphs_module
from sliders.fast.graphs import WARM_UPS, CannotCaptureError, CapturedCall, CapturedCalls
from sliders.train.trainer import Trainer


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch):
    replace_cuda(monkeypatch)


def make_trainer(root, prompts=None, **overrides):
    """Without the checks of a run, which refuse nf4 without a GPU."""
    flags = ["--iterations", "14"]
    argv = write_experiment(root, flags=flags, prompts=prompts, data=make_scale_folders(root / "data"), **overrides)
    (settings,), _ = load_settings(argv)
    return Trainer(unchecked_plan(settings))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """Its batches have one or two pairs."""
    prompts = [{"target": "", "resolution": 64, "batch_size": pairs} for pairs in (1, 2)]
    return make_trainer(tmp_path_factory.mktemp("captured"), prompts)


def captured_on_cpu(trainer, forward=None):
    """The trainer's backward passes through graphs. forward: instead of its own."""
    if forward is not None:
        trainer = copy.copy(trainer)
        trainer.step = copy.copy(trainer.step)
        trainer.step.loss_of = forward
    return CapturedCalls(trainer.step.backward, torch.device("cpu"), "training", trainer.weights.drop_gradients)


def batches(trainer, *sizes):
    """Yields a batch for each number of pairs in `sizes`, all different."""
    made = (trainer.step.make_batch(trainer.step.draw(step)) for step in range(1000))
    for pairs in sizes:
        yield next(batch for batch in made if len(batch.scales) == 2 * pairs)


def assert_same_step(trainer, graphs, batch):
    """Bit for bit, because the same operations run on the same numbers. Returns loss and gradient."""
    loss, gradient = graphs(batch), trainer.weights.master.grad.clone()
    assert torch.equal(loss, trainer.step.gradient(batch)) and torch.equal(gradient, trainer.weights.master.grad)
    return loss, gradient


def test_the_stand_in_behaves_like_a_graph():
    """A replay uses the present tensors and the Python numbers of the capture, which may not read tensor values."""
    x, factor, graph = torch.ones(2), 2.0, Graph()
    with capture(graph):
        y = x * factor
    x.fill_(3)
    factor = 5.0
    graph.replay()
    assert y.tolist() == [6, 6]
    for waits in (lambda: y.sum().item(), lambda: y[y > factor], lambda: torch.tensor(1.0)):
        with pytest.raises(RuntimeError, match="not permitted"), capture(Graph()):
            waits()


WAYS = {  # sections of the config
    "reference": {},
    "weighted": {"train": {"min_snr_gamma": 0.2}},
    "v-prediction": {"pretrained_model": {"v_pred": True}},
    "not clipped": {"train": {"max_grad_norm": 0}},
    "checkpointed": {"other": {"gradient_checkpointing": True}},
    "autocast": {"other": {"torch_amp": True}},
    **{algo: {"network": {"algo": algo}} for algo in ALGORITHMS if algo != "lora"},
    "bfloat16": {"train": {"precision": "bfloat16"}},
    "fp8": {"pretrained_model": {"quantize": "fp8"}, "train": {"precision": "bfloat16"}},
    "int8": {"pretrained_model": {"quantize": "int8"}},
    "nf4": {"pretrained_model": {"quantize": "nf4"}},
    "all": {
        "pretrained_model": {"quantize": "nf4"},
        "train": {"min_snr_gamma": 0.2},
        "other": {"gradient_checkpointing": True},
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_replay_uses_its_own_batch_and_the_present_weights(tmp_path, way):
    trainer = make_trainer(tmp_path, **WAYS[way])
    graphs, found = captured_on_cpu(trainer), []
    for step in range(3):  # uncaptured, captured, replayed
        loss, gradient = assert_same_step(trainer, graphs, trainer.step.make_batch(trainer.step.draw(step)))
        trainer.step.update(loss)
        found.append(gradient)
    assert graphs.captured == 1
    assert all((a - b).norm() > 0.1 * a.norm() for a, b in pairwise(found))


def test_a_text_step_is_replayed_with_its_own_latents_and_strength(tmp_path):
    """Its loss sets the multipliers twice. Prompt sets may differ in guidance, of which a graph must not keep the first."""
    trainer = make_text_trainer(tmp_path, other={"gradient_checkpointing": True})
    sets = [draw for step in range(20) if len((draw := trainer.step.draw(step)).rows) == 2]
    graphs, found = captured_on_cpu(trainer), []
    for draw in sets[:3]:  # uncaptured, captured, replayed
        loss, gradient = assert_same_step(trainer, graphs, trainer.step.make_batch(draw))
        trainer.step.update(loss)
        found.append(gradient)
    assert graphs.captured == 1
    batch = trainer.step.make_batch(sets[0])
    for strength in (1.0, -2.0):
        assert_same_step(trainer, graphs, replace(batch, strength=torch.full_like(batch.strength, strength)))
    assert all((a - b).norm() > 0.1 * a.norm() for a, b in pairwise(found))


SEVERAL_SHAPES = [
    {"target": "a disc", "resolution": 128, "dynamic_resolution": True, "dynamic_crops": True},
    {"target": "a ring", "resolution": 64, "batch_size": 3},
]


def test_a_run_with_graphs_trains_the_same_weights_as_one_without(tmp_path):
    """With batches of three shapes, each of which comes at least twice in 14 steps."""
    masters = []
    for name in ("plain", "captured"):
        trainer = make_trainer(tmp_path / name, SEVERAL_SHAPES)
        if name == "captured":
            trainer.step.gradient = captured_on_cpu(trainer)
        trainer.run()
        masters.append(trainer.weights.master)
    assert trainer.step.captured == 3
    assert torch.equal(*masters)


def test_a_shape_is_captured_when_it_comes_again(trainer, monkeypatch):
    pools, streams, forwards = [], [], []
    monkeypatch.setattr(
        torch.cuda,
        "graph",
        lambda graph, pool, stream: (pools.append(pool), streams.append(stream), capture(graph))[-1],
    )
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: streams.append(stream) or nullcontext())

    def forward(batch):
        forwards.append(len(batch.scales))
        return trainer.step.loss_of(batch)

    graphs, found = captured_on_cpu(trainer, forward), []
    generator = torch.get_rng_state()
    for batch in batches(trainer, 2, 1, 2, 2, 1):
        assert_same_step(trainer, graphs, batch)
        found.append(graphs.captured)
    assert found == [0, 0, 1, 1, 2]
    assert torch.equal(generator, torch.get_rng_state())
    assert pools[0] is None and isinstance(pools[1], Graph)  # they share a memory pool
    assert len(streams) == 3 and len(set(streams)) == 1  # warm-up and both captures use the same stream
    warm_up = WARM_UPS
    assert (forwards.count(4), forwards.count(2)) == (1 + warm_up + 1, 1 + 1)  # uncaptured, warm-up, capture


def test_the_number_of_graphs_is_limited(trainer, monkeypatch):
    monkeypatch.setattr(graphs_module, "MAX_GRAPHS", 1)
    graphs = captured_on_cpu(trainer)
    for batch in batches(trainer, 1, 2, 1, 2):
        assert_same_step(trainer, graphs, batch)
    assert graphs.captured == 1
    graphs.forget()
    assert graphs.captured == 0
    assert_same_step(trainer, graphs, next(batches(trainer, 1)))
    assert graphs.captured == 1


def waits(loss):
    loss.item()


def runs_out_of_memory(loss):
    loss.backward()  # leaves gradients on the weights
    raise torch.OutOfMemoryError


@pytest.mark.parametrize(
    ("trouble", "reason"), [(waits, "operation not permitted"), (runs_out_of_memory, "no memory left")]
)
def test_a_capture_that_fails_is_reported_once_and_training_continues(trainer, capsys, trouble, reason):
    def forward(batch):
        loss = trainer.step.loss_of(batch)
        if torch.cuda.is_current_stream_capturing() and len(batch.scales) == 2:
            trouble(loss)
        return loss

    graphs = captured_on_cpu(trainer, forward)
    for batch in batches(trainer, 2, 2, 1, 1, 2, 1):
        assert_same_step(trainer, graphs, batch)
    assert graphs.captured == 0
    assert capsys.readouterr().out.count(reason) == 1


def test_no_capture_follows_one_that_runs_out_of_memory_without_other_graphs(trainer, capsys):
    def forward(batch):
        loss = trainer.step.loss_of(batch)
        if torch.cuda.is_current_stream_capturing():
            runs_out_of_memory(loss)
        return loss

    graphs = captured_on_cpu(trainer, forward)
    for batch in batches(trainer, 1, 1):
        assert_same_step(trainer, graphs, batch)
    assert capsys.readouterr().out.count("no memory left") == 1


def test_an_empty_graph_is_rejected(trainer):
    batch = next(batches(trainer, 1))
    loss = trainer.step.gradient(batch)
    with pytest.raises(CannotCaptureError, match="empty"):
        CapturedCall(lambda: loss, [], Stream(), None)


def test_graphs_are_freed_once_for_a_shape_that_does_not_fit_beside_them(trainer, monkeypatch, capsys):
    """On a GPU where two pairs fit only if there are no graphs."""
    alive = weakref.WeakSet()

    class Watched(CapturedCall):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.add(self)

    def forward(batch):
        if len(batch.scales) == 4 and alive:
            raise torch.OutOfMemoryError
        return trainer.step.loss_of(batch)

    monkeypatch.setattr(graphs_module, "CapturedCall", Watched)
    graphs, found = captured_on_cpu(trainer, forward), []
    for batch in batches(trainer, 1, 1, 2, 1, 1):
        assert_same_step(trainer, graphs, batch)
        found.append(graphs.captured)
    assert found == [0, 1, 0, 1, 1]
    assert not capsys.readouterr().out
    for batch in batches(trainer, 2, 1):
        assert_same_step(trainer, graphs, batch)
        assert graphs.captured == 0
    assert capsys.readouterr().out.count("no memory left") == 1


def test_a_step_that_runs_out_of_memory_without_graphs_fails(trainer):
    def never(batch):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        CapturedCalls(never, torch.device("cpu"), "training", lambda: None)(next(batches(trainer, 1)))


def test_training_continues_without_graphs_if_one_cannot_be_launched(trainer, monkeypatch, capsys):
    """As with a driver that has no memory left, whose error is not PyTorch's OutOfMemoryError."""

    def refuse(graph):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Graph, "replay", refuse)
    graphs = captured_on_cpu(trainer)
    for batch in batches(trainer, 1, 1, 1):
        assert_same_step(trainer, graphs, batch)
    assert graphs.captured == 0
    assert capsys.readouterr().out.count("CUDA error: out of memory") == 1


def test_errors_of_the_step_itself_are_raised_unchanged(trainer):
    def broken(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        CapturedCalls(broken, torch.device("cpu"), "training", lambda: None)(next(batches(trainer, 1)))
