"""The flat weights and the step's gradient: what is seen of them is what single tensors would give."""

import dataclasses

import pytest
import torch
from conftest import make_scale_folders, write_experiment
from sliders import gradients
from sliders.flat import FlatWeights
from sliders.gradients import CannotCaptureError, CapturedGradients, Gradients
from sliders.models.narrow import build_narrow_sdxl
from sliders.plan import check_run
from sliders.settings import load_settings
from sliders.trainer import Trainer
from test_interop import random_inputs, random_network


def gradients_of(unet, network):
    network.zero_grad()
    unet(**random_inputs()).sample.square().sum().backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    return found


def test_flat_weights_hold_every_weight_and_its_gradient_once():
    unet = build_narrow_sdxl().unet.requires_grad_(False).to(memory_format=torch.channels_last)
    network = random_network(unet)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    wanted = gradients_of(unet, network)
    flat = FlatWeights(network, torch.float32)
    assert flat.master.numel() == network.num_parameters()
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())

    unet(**random_inputs()).sample.square().sum().backward()
    norm = flat.gather_gradients()

    assert all(p.grad is None for p in network.parameters())
    assert torch.allclose(norm, torch.stack([g.norm() for g in wanted.values()]).norm(), rtol=1e-5)
    with torch.no_grad():
        flat.master -= flat.master.grad  # plain gradient descent, seen through the network's own parameters
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter, before[name] - wanted[name], rtol=1e-3, atol=1e-3), name


def test_a_bfloat16_model_computes_with_the_copy_and_learns_in_the_master():
    unet = build_narrow_sdxl().unet.requires_grad_(False).to(memory_format=torch.channels_last).to(torch.bfloat16)
    network = random_network(unet)
    inputs = random_inputs()
    inputs = {k: v.bfloat16() if k in ("sample", "encoder_hidden_states") else v for k, v in inputs.items()}
    inputs["added_cond_kwargs"]["text_embeds"] = inputs["added_cond_kwargs"]["text_embeds"].bfloat16()
    with torch.no_grad():
        plain = unet(**inputs).sample
        flat = FlatWeights(network, torch.bfloat16)
        assert torch.allclose(unet(**inputs).sample.float(), plain.float(), atol=0.05, rtol=0.05)
        flat.master.mul_(3)
        assert torch.allclose(unet(**inputs).sample.float(), plain.float(), atol=0.05, rtol=0.05)  # not refreshed yet
        flat.refresh()
        assert not torch.allclose(unet(**inputs).sample.float(), plain.float(), atol=0.05, rtol=0.05)
    unet(**inputs).sample.float().square().sum().backward()
    assert flat.gather_gradients() > 0
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_what_an_interrupted_backward_left_is_forgotten():
    unet = build_narrow_sdxl().unet.requires_grad_(False).to(memory_format=torch.channels_last)
    network = random_network(unet)
    flat = FlatWeights(network, torch.float32)
    wanted = []
    for leftover in (False, True):
        if leftover:
            unet(**random_inputs()).sample.sum().backward()
            flat.drop_gradients()
        unet(**random_inputs()).sample.square().sum().backward()
        flat.gather_gradients()
        wanted.append(flat.master.grad.clone())
    assert torch.equal(*wanted)


class Recorded:
    """What a graph is to its user: a step on its own copy of a batch's shape. The real one is in test_gpu.py."""

    def __init__(self, gradients, batch, beside):
        self.static = dataclasses.replace(batch, **{k: v.clone() for k, v in vars(batch).items()})
        self.gradients, self.beside = gradients, beside
        gradients(self.static)  # warms up

    def __call__(self, batch):
        for name, tensor in vars(batch).items():
            getattr(self.static, name).copy_(tensor)
        return self.gradients(self.static)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """Draws batches of one pair and of two pairs."""
    root = tmp_path_factory.mktemp("captured")
    prompts = [{"target": "", "resolution": 64, "batch_size": pairs} for pairs in (1, 2)]
    argv = write_experiment(root, prompts=prompts, data=make_scale_folders(root / "data"))
    (settings,), _ = load_settings(argv)
    return Trainer(settings, check_run(settings))


def batches(trainer, *sizes):
    """One of each number of pairs, all different."""
    made = (trainer.make_batch(trainer.draw(step)) for step in range(1000))
    for pairs in sizes:
        yield next(batch for batch in made if len(batch.scales) == 2 * pairs)


def test_a_shape_is_captured_when_it_comes_again_and_nothing_else_changes(trainer):
    captured, found = CapturedGradients(trainer.gradients, Recorded), []
    generator = torch.get_rng_state()
    for batch in batches(trainer, 2, 1, 2, 2, 1):
        values = captured(batch)
        gradient = trainer.weights.master.grad.clone()
        assert torch.equal(values, trainer.gradients(batch)) and torch.equal(gradient, trainer.weights.master.grad)
        found.append(captured.captured)
    assert found == [0, 0, 1, 1, 2]
    assert torch.equal(generator, torch.get_rng_state())
    first, second = captured._graphs.values()
    assert first.beside is None and second.beside is first  # one pool of memory


def test_only_so_many_graphs_are_kept(trainer, monkeypatch):
    monkeypatch.setattr(gradients, "MAX_GRAPHS", 1)
    captured = CapturedGradients(trainer.gradients, Recorded)
    for batch in batches(trainer, 2, 1, 1, 2, 1):
        assert captured(batch).isfinite().all()
    assert captured.captured == 1
    captured.forget()
    assert captured.captured == 0
    captured(next(batches(trainer, 2)))
    assert captured.captured == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CannotCaptureError("operation not permitted"), "operation not permitted"),
        (torch.OutOfMemoryError(), "no memory left"),
    ],
)
def test_a_capture_that_fails_halfway_is_told_once_and_training_goes_on(trainer, capsys, error, reason):
    def capture(gradients, batch, beside):
        if len(batch.scales) == 4:
            return Recorded(gradients, batch, beside)
        trainer.forward(batch).backward()  # its gradients are left behind
        raise error

    captured = CapturedGradients(trainer.gradients, capture)
    for batch in batches(trainer, 2, 2, 1, 1, 1, 2):
        values = captured(batch)
        gradient = trainer.weights.master.grad.clone()
        assert torch.equal(values, trainer.gradients(batch)) and torch.equal(gradient, trainer.weights.master.grad)
    assert captured.captured == 0
    assert capsys.readouterr().out.count(reason) == 1


def test_a_step_that_runs_out_of_memory_beside_graphs_gets_theirs_and_alone_it_fails(trainer):
    class Full(Gradients):
        def __call__(self, batch):
            if len(batch.scales) == 4 and captured.captured:
                raise torch.OutOfMemoryError
            return super().__call__(batch)

    captured = CapturedGradients(Full(trainer.forward, trainer.weights, 0.0), Recorded)
    for batch in batches(trainer, 1, 1, 2):
        assert captured(batch).isfinite().all()
    assert captured.captured == 0

    def never(batch):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        CapturedGradients(never, Recorded)(next(batches(trainer, 1)))


def test_what_is_wrong_with_the_step_itself_comes_out_as_it_is(trainer):
    def broken(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        CapturedGradients(broken, Recorded)(next(batches(trainer, 1)))
