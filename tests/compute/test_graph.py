"""The captured step, on a CPU that stands in for a GPU's graphs (cpu_graph.py); on a real one in test_gpu.py."""

import weakref
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from conftest import make_scale_folders, write_experiment
from cpu_graph import Graph, Stream, capture, replace_cuda
from experiments import unchecked_plan
from sliders.config.settings import load_settings
from sliders.train import gradients
from sliders.train.gradients import CannotCaptureError, CapturedGradients, Gradients, StepGraph
from sliders.train.trainer import Trainer


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch):
    replace_cuda(monkeypatch)


def make_trainer(root, prompts=None, **overrides):
    """Past the checks of a run, which refuse bitsandbytes' layers without a GPU."""
    flags = ["--iterations", "14"]
    argv = write_experiment(root, flags=flags, prompts=prompts, data=make_scale_folders(root / "data"), **overrides)
    (settings,), _ = load_settings(argv)
    return Trainer(unchecked_plan(settings))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """Draws batches of one pair and of two pairs."""
    prompts = [{"target": "", "resolution": 64, "batch_size": pairs} for pairs in (1, 2)]
    return make_trainer(tmp_path_factory.mktemp("captured"), prompts)


def batches(trainer, *sizes):
    """One of each number of pairs, all different."""
    made = (trainer.make_batch(trainer.draw(step)) for step in range(1000))
    for pairs in sizes:
        yield next(batch for batch in made if len(batch.scales) == 2 * pairs)


def assert_same_step(trainer, graphs, batch):
    """Bit for bit, since the same operations run on the same numbers. Returns loss and norm, and the gradient."""
    values, gradient = graphs(batch), trainer.weights.master.grad.clone()
    assert torch.equal(values, trainer.gradients(batch)) and torch.equal(gradient, trainer.weights.master.grad)
    return values, gradient


def test_the_stand_in_is_a_graph():
    """It computes with what the tensors hold now and with the numbers of then, and takes none out while it captures."""
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
    "difference": {"train": {"loss": "difference"}},
    "v-prediction": {"pretrained_model": {"v_pred": True}},
    "not clipped": {"train": {"max_grad_norm": 0}},
    "checkpointed": {"other": {"gradient_checkpointing": True}},
    "autocast": {"other": {"torch_amp": True}},
    "bfloat16": {"train": {"precision": "bfloat16"}},
    "fp8": {"pretrained_model": {"quantize": "fp8"}, "train": {"precision": "bfloat16"}},
    "int8": {"pretrained_model": {"quantize": "int8"}},
    "nf4": {"pretrained_model": {"quantize": "nf4"}},
    "all": {
        "pretrained_model": {"quantize": "nf4"},
        "train": {"loss": "difference"},
        "other": {"gradient_checkpointing": True},
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_replay_is_the_step_of_its_own_batch_with_the_weights_of_now(tmp_path, way):
    trainer = make_trainer(tmp_path, **WAYS[way])
    graphs, found = CapturedGradients(trainer.gradients), []
    for step in range(3):  # as it comes, as a new graph, as a replay alone
        values, gradient = assert_same_step(trainer, graphs, trainer.make_batch(trainer.draw(step)))
        trainer.learner.update(values)
        found.append(gradient)
    assert graphs.captured == 1
    assert all((a - b).norm() > 0.1 * a.norm() for a, b in pairwise(found))


SEVERAL_SHAPES = [
    {"target": "a disc", "resolution": 128, "dynamic_resolution": True, "dynamic_crops": True},
    {"target": "a ring", "resolution": 64, "batch_size": 3},
]


def test_a_run_through_graphs_leaves_the_slider_of_one_without(tmp_path):
    """Over batches of three shapes, of which each comes twice within 14 steps."""
    masters = []
    for name in ("plain", "captured"):
        trainer = make_trainer(tmp_path / name, SEVERAL_SHAPES)
        if name == "captured":
            trainer.gradients = CapturedGradients(trainer.gradients)
        trainer.run()
        masters.append(trainer.weights.master)
    assert trainer.gradients.captured == 3
    assert torch.equal(*masters)


def test_a_shape_is_captured_when_it_comes_again_and_nothing_else_changes(trainer, monkeypatch):
    pools, streams, forwards = [], [], []
    monkeypatch.setattr(
        torch.cuda,
        "graph",
        lambda graph, pool, stream: (pools.append(pool), streams.append(stream), capture(graph))[-1],
    )
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: streams.append(stream) or nullcontext())

    def forward(batch):
        forwards.append(len(batch.scales))
        return trainer.forward(batch)

    graphs, found = CapturedGradients(Gradients(forward, trainer.weights, trainer.settings.train.max_grad_norm)), []
    generator = torch.get_rng_state()
    for batch in batches(trainer, 2, 1, 2, 2, 1):
        assert_same_step(trainer, graphs, batch)
        found.append(graphs.captured)
    assert found == [0, 0, 1, 1, 2]
    assert torch.equal(generator, torch.get_rng_state())
    assert pools[0] is None and isinstance(pools[1], Graph)  # one pool of memory
    assert len(streams) == 3 and len(set(streams)) == 1  # the first warms up, and both are captured, on one stream
    warm_up = gradients.WARM_UPS
    assert (forwards.count(4), forwards.count(2)) == (1 + warm_up + 1, 1 + 1)  # as they come, warming up, captured


def test_only_so_many_graphs_are_kept(trainer, monkeypatch):
    monkeypatch.setattr(gradients, "MAX_GRAPHS", 1)
    graphs = CapturedGradients(trainer.gradients)
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
    loss.backward()  # its gradients are left behind
    raise torch.OutOfMemoryError


@pytest.mark.parametrize(
    ("trouble", "reason"), [(waits, "operation not permitted"), (runs_out_of_memory, "no memory left")]
)
def test_a_capture_that_fails_halfway_is_told_once_and_training_goes_on(trainer, capsys, trouble, reason):
    def forward(batch):
        loss = trainer.forward(batch)
        if torch.cuda.is_current_stream_capturing() and len(batch.scales) == 2:
            trouble(loss)
        return loss

    graphs = CapturedGradients(Gradients(forward, trainer.weights, trainer.settings.train.max_grad_norm))
    for batch in batches(trainer, 2, 2, 1, 1, 2, 1):
        assert_same_step(trainer, graphs, batch)
    assert graphs.captured == 0
    assert capsys.readouterr().out.count(reason) == 1


def test_a_capture_that_finds_no_room_though_nothing_else_is_kept_is_the_last(trainer, capsys):
    def forward(batch):
        loss = trainer.forward(batch)
        if torch.cuda.is_current_stream_capturing():
            runs_out_of_memory(loss)
        return loss

    graphs = CapturedGradients(Gradients(forward, trainer.weights, trainer.settings.train.max_grad_norm))
    for batch in batches(trainer, 1, 1):
        assert_same_step(trainer, graphs, batch)
    assert capsys.readouterr().out.count("no memory left") == 1


def test_an_empty_graph_is_noticed(trainer):
    batch = next(batches(trainer, 1))
    values = trainer.gradients(batch)
    with pytest.raises(CannotCaptureError, match="empty"):
        StepGraph(lambda batch: values, batch, Stream(), None)


def test_a_shape_that_finds_no_room_beside_graphs_gets_theirs_and_they_come_back_once(trainer, monkeypatch, capsys):
    """On a GPU on which two pairs fit only where no graph is left."""
    alive = weakref.WeakSet()

    class Watched(StepGraph):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.add(self)

    def forward(batch):
        if len(batch.scales) == 4 and alive:
            raise torch.OutOfMemoryError
        return trainer.forward(batch)

    monkeypatch.setattr(gradients, "StepGraph", Watched)
    graphs, found = CapturedGradients(Gradients(forward, trainer.weights, trainer.settings.train.max_grad_norm)), []
    for batch in batches(trainer, 1, 1, 2, 1, 1):
        assert_same_step(trainer, graphs, batch)
        found.append(graphs.captured)
    assert found == [0, 1, 0, 1, 1]
    assert not capsys.readouterr().out
    for batch in batches(trainer, 2, 1):
        assert_same_step(trainer, graphs, batch)
        assert graphs.captured == 0
    assert capsys.readouterr().out.count("no memory left") == 1


def test_a_step_that_runs_out_of_memory_alone_fails(trainer):
    def never(batch):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        CapturedGradients(never)(next(batches(trainer, 1)))


def test_a_graph_that_cannot_be_started_is_given_up(trainer, monkeypatch, capsys):
    """As by a driver that has no memory left for it, which is no OutOfMemoryError of PyTorch's."""

    def refuse(graph):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Graph, "replay", refuse)
    graphs = CapturedGradients(trainer.gradients)
    for batch in batches(trainer, 1, 1, 1):
        assert_same_step(trainer, graphs, batch)
    assert graphs.captured == 0
    assert capsys.readouterr().out.count("CUDA error: out of memory") == 1


def test_what_is_wrong_with_the_step_itself_comes_out_as_it_is(trainer):
    def broken(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        CapturedGradients(broken)(next(batches(trainer, 1)))
