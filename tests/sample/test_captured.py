"""Sampling through CUDA graphs, replaced by cpu_graph.py except in the last test."""

import pytest
import torch
from cpu_graph import Graph, Stream, replace_cuda
from networks import random_network
from sliders.compute.device import place
from sliders.config.schema import PretrainedModel
from sliders.fast.path import FastPath
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.sample import captured, sampling
from sliders.sample.sampling import Row, Sampling, sample

SIZE = {"width": 64, "height": 64, "steps": 5, "guidance": 3.0}


@pytest.fixture(scope="module")
def tiny():
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)
    return model, model.encode_prompts(["a", "b", ""], "cpu")


@pytest.fixture
def networks(tiny):
    """Two sliders with random weights on one UNet, fused as on a GPU, and removed afterwards."""
    found = [random_network(tiny[0].denoiser, method="noxattn"), random_network(tiny[0].denoiser, "lierla", "selfattn")]
    with FastPath(tiny[0].denoiser, found):
        yield found
    for network in reversed(found):
        network.remove()


@pytest.fixture
def capture_on_cpu(monkeypatch):
    """`capture_on_cpu()` makes sampling capture graphs, even for few calls, and returns the list of them."""
    graphs = []

    class Watched(captured.CapturedCall):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            graphs.append(self)

    def start(worth=1):
        replace_cuda(monkeypatch)
        monkeypatch.setattr(sampling, "can_capture", lambda unet: True)
        monkeypatch.setattr(captured, "CapturedCall", Watched)
        monkeypatch.setattr(captured, "_side_stream", lambda device: Stream())
        monkeypatch.setattr(captured, "WORTH", worth)
        return graphs

    return start


def rows_of(embeds):
    """Five pictures with prompts, seeds and multipliers of their own: two batches of two, and one of one."""
    found = [("a", 1, 0.0, 1.0), ("a", 1, 2.0, -1.0), ("b", 2, 0.67, 0.0), ("b", 3, 1.0, 2.0), ("a", 4, 1.3, 0.5)]
    return [Row(embeds[prompt], seed, multipliers) for prompt, seed, *multipliers in found]


def pictures(tiny, networks, **options):
    model, embeds = tiny
    sampling = Sampling(**{**SIZE, "batch_size": 2, **options})
    return torch.stack(list(sample(model, networks, rows_of(embeds), embeds[""], sampling)))


@pytest.mark.parametrize(
    ("options", "graphs"),
    # The last picture has a shape of its own. Before the slider joins there is another shape, of which that picture has
    # only two calls.
    [({}, 2), ({"sampler": "euler_a"}, 2), ({"from_step": 2}, 3), ({"cuda_graph": False}, 0)],
)
def test_pictures_with_graphs_equal_those_without(tiny, networks, capture_on_cpu, options, graphs):
    wanted, forward = pictures(tiny, networks, **options), tiny[0].denoiser.forward
    made = capture_on_cpu()
    assert torch.equal(pictures(tiny, networks, **options), wanted)
    assert len(made) == graphs
    assert tiny[0].denoiser.forward is forward


def test_nothing_is_captured_for_few_calls(tiny, networks, capture_on_cpu):
    """Of two pictures together there are eight. One is left for the last picture after the two before a capture."""
    made = capture_on_cpu(worth=captured.WORTH)
    pictures(tiny, networks, steps=4)
    assert len(made) == 1


def test_nothing_is_captured_while_running_kernels_hides_launching_them(tiny, networks, capture_on_cpu, monkeypatch):
    """On a GPU that needs another second for each call after its last kernel is launched, in virtual time."""
    made, seconds = capture_on_cpu(), [0.0]
    for name, cost in (("synchronize", 1.0), ("wait_stream", 0.0)):
        monkeypatch.setattr(Stream, name, lambda *_, cost=cost: seconds.append(cost))
    monkeypatch.setattr(captured.time, "perf_counter", lambda: sum(seconds))
    wanted = pictures(tiny, networks, cuda_graph=False)
    assert torch.equal(pictures(tiny, networks), wanted)
    assert not made
    assert sum(seconds) == 2  # it waits once for each shape


def test_sampling_goes_on_without_graphs_if_one_cannot_be_launched(tiny, networks, capture_on_cpu, monkeypatch, capsys):
    def refuse(graph):
        raise RuntimeError("CUDA error: unknown error")

    wanted = pictures(tiny, networks)
    made = capture_on_cpu()
    monkeypatch.setattr(Graph, "replay", refuse)
    assert torch.equal(pictures(tiny, networks), wanted)
    assert not made
    assert capsys.readouterr().out.count("CUDA error: unknown error") == 1


def test_a_capture_that_runs_out_of_memory_is_given_up(tiny, networks, capture_on_cpu, monkeypatch, capsys):
    wanted = pictures(tiny, networks)
    capture_on_cpu()

    def never(*arguments, **options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(captured, "CapturedCall", never)
    assert torch.equal(pictures(tiny, networks), wanted)
    assert capsys.readouterr().out.count("no memory left") == 1


def test_graphs_make_room_for_the_vae(tiny, networks, capture_on_cpu, monkeypatch):
    """On a GPU where a picture can be decoded only if there are no graphs."""
    wanted = pictures(tiny, networks)
    capture_on_cpu()
    model, decode, held = tiny[0], tiny[0].decode, []

    def decode_alone(latents):
        held.append(model.denoiser.forward.__self__.captured)
        if held[-1]:
            raise torch.OutOfMemoryError
        return decode(latents)

    monkeypatch.setattr(model, "decode", decode_alone)
    assert torch.equal(pictures(tiny, networks, decode_on_cpu=False), wanted)
    assert held.count(0) == len(wanted) and max(held) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_graphs_and_fused_blocks_make_the_same_pictures():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)
    embeds = model.encode_prompts(["a", "b", ""], "cuda")
    place(model.denoiser, "cuda", torch.float32)
    model.vae.to("cuda")
    networks = [random_network(model.denoiser), random_network(model.denoiser, "lierla", "selfattn")]
    wanted = pictures((model, embeds), networks, cuda_graph=False)
    FastPath(model.denoiser, networks)
    assert (pictures((model, embeds), networks) - wanted).abs().max() < 1e-2
