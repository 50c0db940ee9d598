"""Tests that need a CUDA GPU."""

import itertools
import math
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import make_scale_folders, write_experiment
from exact_gradients import LAYERS, assert_float32_resolution
from experiments import TEXT_SETS, make_text_trainer
from flows import FLOWS
from networks import random_inputs, random_network
from safetensors.torch import load_file
from sliders.adaptors import ALGORITHMS
from sliders.adaptors.flat_weights import FlatWeights
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute import device as device_module
from sliders.compute.device import place
from sliders.compute.patches import Patches
from sliders.compute.quantization import BYTE, ByteLinear, quantize
from sliders.config.schema import Network
from sliders.config.settings import load_settings
from sliders.fast import path
from sliders.fast.attention import ChosenAttention, attend_with
from sliders.fast.blocks import fuse_blocks
from sliders.fast.frozen import frozen_kind
from sliders.fast.graphs import CannotCaptureError, CapturedCall
from sliders.fast.path import FastPath
from sliders.models.diffusers_unet.architecture import UNET
from sliders.models.layers import ARCHITECTURES
from sliders.models.sd.narrow import build_narrow_sd
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

FOLDERS = ("--folders", "verylow, low, high, veryhigh", "--scales", "-1, 0.5, 1, 2")


def make_trainer(tmp_path, device, flags=(), family="sdxl", **overrides):
    data = make_scale_folders(tmp_path / "data")
    root = tmp_path / f"{device}{len(list(tmp_path.iterdir()))}"
    root.mkdir()
    flags = [*FOLDERS, "--iterations", "10", *flags]
    argv = [*write_experiment(root, flags=flags, data=data, **overrides), "--device", device]
    (settings,), _ = load_settings(argv, family)
    return Trainer(make_plan(settings))


@pytest.fixture(autouse=True)
def plain_float32():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def assert_learns_the_same(trainer, other):
    """Runs both: losses agree to 1e-3, and weights, a more sensitive measure, to 1 % of how far they moved."""
    start = trainer.weights.master.detach().cpu().clone()
    losses = [t.run().losses for t in (trainer, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    ends = [t.weights.master.detach().cpu() for t in (trainer, other)]
    assert (ends[1] - ends[0]).norm() < 0.01 * (ends[0] - start).norm()


def test_a_gpu_learns_the_same_as_a_cpu(tmp_path):
    assert_learns_the_same(*(make_trainer(tmp_path, device) for device in ("cpu", "0")))


@pytest.mark.parametrize("v2", [False, True])
def test_a_gpu_learns_stable_diffusion_like_a_cpu(tmp_path, v2):
    """With fused blocks and a graph."""
    trainers = [make_trainer(tmp_path, device, family="sd", pretrained_model={"v2": v2}) for device in ("cpu", "0")]
    assert_learns_the_same(*trainers)
    assert trainers[1].step.captured == 1


@pytest.mark.parametrize("family", ["flux2", "zimage"])
def test_a_gpu_learns_flow_models_like_a_cpu(tmp_path, family):
    """With a graph."""
    network = {"training_method": "full"}
    trainers = [make_trainer(tmp_path, device, family=family, network=network) for device in ("cpu", "0")]
    assert_learns_the_same(*trainers)
    assert trainers[1].step.captured == 1


@pytest.mark.parametrize("channels", [40, 80, 160])
def test_attention_with_the_head_sizes_of_stable_diffusion_1(channels):
    """`auto` prefers cuDNN's kernels on Hopper, and must pass on what they do not support, also for the backward pass."""
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"device": "cuda", "generator": generator}
    single = [torch.randn(2, n, 8, channels, **options).bfloat16().requires_grad_() for n in (256, 77, 77)]
    double = [t.detach().double().requires_grad_() for t in single]
    outputs = [
        attend_with(name, torch.device("cuda"))(*inputs) for name, inputs in (("auto", single), ("math", double))
    ]
    gradients = [torch.autograd.grad(out.square().sum(), x) for out, x in zip(outputs, (single, double), strict=True)]
    for found, wanted in zip((outputs[0], *gradients[0]), (outputs[1], *gradients[1]), strict=True):
        assert (found.double() - wanted).norm() < 0.02 * wanted.norm()


def test_encoders_are_moved_off_the_gpu_and_adaptors_stay_float32(tmp_path):
    trainer = make_trainer(tmp_path, "0", train={"precision": "bfloat16"})
    assert trainer.model.pipe.text_encoder is None
    assert {p.device.type for p in trainer.model.pipe.vae.parameters()} == {"cpu"}
    assert {(p.device.type, p.dtype) for p in trainer.network.parameters()} == {("cuda", torch.float32)}
    assert trainer.model.denoiser.dtype == torch.bfloat16


def test_weights_larger_than_the_upload_buffers_arrive_unchanged(monkeypatch):
    monkeypatch.setattr(device_module, "UPLOADED", 1000)
    unet, again = build_narrow_sdxl().unet, build_narrow_sdxl().unet
    unet.register_buffer("steps", torch.arange(10))
    place(unet, "cuda", torch.bfloat16)
    assert torch.equal(unet.steps.cpu(), torch.arange(10))
    for (name, found), wanted in zip(unet.named_parameters(), again.parameters(), strict=True):
        assert found.is_cuda and torch.equal(found.cpu(), wanted.bfloat16()), name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "lion8bit"])
def test_optimizers_train_on_the_gpu(tmp_path, optimizer):
    report = make_trainer(tmp_path, "0", train={"precision": "bfloat16", "optimizer": optimizer}).run()
    assert all(t.isfinite().all() for t in load_file(report.path).values())
    assert report.peak_memory > 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu_learns_the_same_as_the_first(tmp_path):
    """With fused blocks and graphs, which use only the current device."""
    masters = []
    for device in ("0", "1"):
        trainer = make_trainer(tmp_path, device)
        start = trainer.weights.master.detach().cpu().clone()
        trainer.run()
        assert trainer.step.captured == 1
        assert trainer.weights.master.device.index == torch.cuda.current_device() == int(device)
        masters.append(trainer.weights.master.detach().cpu())
    assert (masters[1] - masters[0]).norm() < 0.01 * (masters[0] - start).norm()


@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
def test_a_quantised_model_trains_with_a_graph_and_is_never_on_the_gpu_unquantised(tmp_path, kind):
    plain = build_narrow_sdxl().unet
    size = sum(p.numel() * p.element_size() for p in plain.parameters())
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    quantize(plain, kind, "cuda", torch.float32, UNET.quantized)
    place(plain, "cuda", torch.float32)
    plain.to(memory_format=torch.channels_last)
    assert torch.cuda.max_memory_allocated() - held < size
    trainer = make_trainer(tmp_path, "0", train={"precision": "bfloat16"}, pretrained_model={"quantize": kind})
    start = trainer.weights.master.detach().clone()
    report = trainer.run()
    assert all(map(math.isfinite, report.losses))
    assert (trainer.weights.master - start).norm() > 0.01 * start.norm()
    assert trainer.step.captured == 1


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_quantised_products_are_those_of_their_weights(kind):
    torch.manual_seed(0)
    layers = [ByteLinear(torch.nn.Linear(256, 384, device="cuda", dtype=torch.bfloat16), BYTE[kind]) for _ in range(3)]
    weight = torch.cat([layer.weight.double() * layer.step.double() for layer in layers])
    bias = torch.cat([layer.bias for layer in layers]).double()
    x = torch.randn(2, 40, 256, device="cuda", dtype=torch.bfloat16) * torch.logspace(-2, 2, 40, device="cuda")[:, None]
    x, grad = x.bfloat16(), torch.randn(2, 40, 3 * 384, device="cuda", dtype=torch.bfloat16)
    down = torch.randn(24, 256, device="cuda", dtype=torch.bfloat16)
    product = frozen_kind(layers)(layers, down)
    out, projected, left_to_add = product.forward(x)
    for found, wanted in (
        (out + left_to_add, x.double() @ weight.T + bias),
        (projected, x.double() @ down.double().T),
        (product.backward(grad), grad.double() @ weight),
    ):
        off = (found.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        assert found.dtype == torch.bfloat16
        assert off.max() < 0.005


def count_waits(trainer, step):
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


@pytest.mark.parametrize("graph", ["auto", "off"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_step_never_waits_for_the_gpu(tmp_path, graph, algo):
    trainer = make_trainer(tmp_path, "0", other={"cuda_graph": graph}, network={"algo": algo})
    for step in range(2):  # the second captures
        trainer.step(step)
    assert count_waits(trainer, 2) == 0


@pytest.mark.parametrize(("optimizer", "apart"), [("adamw", 0.01), ("adamw8bit", 0.05)])
def test_a_resumed_run_with_graphs_learns_the_same_as_an_uninterrupted_one(tmp_path, optimizer, apart):
    """60 steps against 20 + 40: the last 40 losses agree to 1e-3, the weights to `apart` of how far they moved.

    It is larger for adamw8bit, which amplifies rounding errors to its quantisation steps.
    """
    same = {"prompts": SEVERAL_SHAPES, "train": {"optimizer": optimizer, "lr_scheduler": "cosine", "seed": 3}}
    straight, first = (make_trainer(tmp_path, "0", flags=["--iterations", "60"], **same) for _ in range(2))
    start = straight.weights.master.detach().clone()
    losses = straight.run().losses
    for step in range(20):
        first.step(step)
        first.done += 1
    first.outputs.save_checkpoint(first.done, first.learner.tensors())
    resumed = Trainer(make_plan(first.settings.model_copy(update={"resume": True})))
    resumed.resume()
    assert resumed.done == 20
    assert resumed.run().losses == pytest.approx(losses[20:], rel=1e-3)
    assert resumed.step.captured
    moved, off = straight.weights.master - start, straight.weights.master - resumed.weights.master
    assert off.norm() < apart * moved.norm()


SEVERAL_SHAPES = [
    {"target": "a disc", "resolution": 128, "dynamic_resolution": True, "dynamic_crops": True},
    {"target": "a ring", "resolution": 64, "batch_size": 3},
]


@pytest.mark.parametrize(
    ("settings", "prompts", "shapes"),
    [
        ({}, SEVERAL_SHAPES, 3),
        ({"gradient_checkpointing": True}, SEVERAL_SHAPES, 3),
        ({"torch_compile": "regional"}, SEVERAL_SHAPES[1:], 1),
    ],
    ids=["plain", "checkpointed", "regional"],
)
def test_graphs_learn_the_same_as_single_kernels(tmp_path, monkeypatch, settings, prompts, shapes):
    """In float32, with batches of all shapes, each of which comes at least twice in 14 steps.

    Compiled is only the middle block, which contains every kind of block that regional compiles one by one: each of the
    tiny model's 34 takes several seconds.
    """
    middle = replace(UNET, compiled=("UNetMidBlock2DCrossAttn",))
    monkeypatch.setitem(ARCHITECTURES, "UNet2DConditionModel", middle)
    flags = ["--iterations", "14"]
    eager = make_trainer(tmp_path, "0", flags, prompts=prompts, other={"cuda_graph": "off"})
    graph = make_trainer(tmp_path, "0", flags, prompts=prompts, other=settings)
    assert_learns_the_same(eager, graph)
    assert graph.step.captured == shapes


def test_text_steps_with_graphs_learn_the_same_as_single_kernels_and_wait_for_nothing(tmp_path):
    """Their latents are made outside of the graph."""
    flags = ["--device", "0", "--iterations", "8"]
    graphs, single = (
        make_text_trainer(tmp_path / graph, flags, TEXT_SETS[:1], other={"cuda_graph": graph})
        for graph in ("auto", "off")
    )
    assert_learns_the_same(graphs, single)
    assert graphs.step.captured == 1
    assert count_waits(graphs, 8) == 0


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_each_replay_computes_the_gradient_of_its_own_batch(tmp_path, algo):
    trainer = make_trainer(tmp_path, "0", network={"algo": algo})
    for step in range(3):
        trainer.step(step)
    assert trainer.step.captured == 1
    found = []
    for step in range(3, 7):
        batch = trainer.step.make_batch(trainer.step.draw(step))
        for gradients in (trainer.step.gradient, trainer.step.backward):
            gradients(batch)
            found.append(trainer.weights.master.grad.clone())
    for replayed, single in zip(found[::2], found[1::2], strict=True):
        assert (replayed - single).norm() < 1e-3 * single.norm()
    assert all((a - b).norm() > 0.1 * a.norm() for a, b in pairwise(found[::2]))


def test_a_forgotten_graph_frees_its_memory_and_is_captured_again(tmp_path):
    trainer = make_trainer(tmp_path, "0")
    for step in range(3):
        trainer.step(step)
    held = torch.cuda.memory_reserved()
    trainer.step.free_memory()
    assert trainer.step.captured == 0
    assert torch.cuda.memory_reserved() < held
    assert trainer.step(3).values.isfinite().all()
    assert trainer.step.captured == 1


def test_a_step_that_waits_for_the_gpu_trains_without_a_graph(tmp_path, capsys):
    trainer = make_trainer(tmp_path, "0")
    forward = trainer.step.loss_of

    def waiting(batch):
        loss = forward(batch)
        loss.item()
        return loss

    trainer.step.loss_of = waiting
    assert all(trainer.step(step).values.isfinite().all() for step in range(4))
    assert trainer.step.captured == 0
    assert capsys.readouterr().out.count("cannot be captured") == 1
    assert torch.randn(9, device="cuda").any(), "a failed capture leaves the generator usable"


def test_an_empty_graph_is_rejected(tmp_path):
    trainer = make_trainer(tmp_path, "0")
    batch = trainer.step.make_batch(trainer.step.draw(0))
    loss = trainer.step.gradient(batch)
    with pytest.raises(CannotCaptureError, match="empty"):
        CapturedCall(lambda: loss, [], torch.cuda.Stream(), None)


KERNELS = {
    "cudnn": "aten::_scaled_dot_product_cudnn_attention",
    "flash": "aten::_scaled_dot_product_flash_attention",
    "efficient": "aten::_scaled_dot_product_efficient_attention",
    "math": "aten::_scaled_dot_product_attention_math",
}


def test_resuming_through_files_gives_the_same_weights(tmp_path):
    """With graphs: equal except for the order of additions on a GPU."""
    data = make_scale_folders(tmp_path / "data")
    masters = []
    for run, stops in enumerate([(10,), (4, 10)]):
        root = tmp_path / f"run{run}"
        root.mkdir()
        for steps in stops:
            flags = [*FOLDERS, "--iterations", str(steps)]
            resume = ["--resume"] if steps != stops[0] else []
            argv = write_experiment(root, flags=[*flags, *resume, "--device", "0"], data=data)
            (settings,), _ = load_settings(argv)
            trainer = Trainer(make_plan(settings))
            if resume:
                trainer.resume()
            trainer.run()
        masters.append(trainer.weights.master.detach())
    assert trainer.done == 10
    assert (masters[0] - masters[1]).norm() < 1e-3 * masters[0].norm()


def unet_output(unet):
    inputs = random_inputs()
    added = {k: v.to(unet.device) for k, v in inputs.pop("added_cond_kwargs").items()}
    moved = {k: v.to(unet.device, unet.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
    added["text_embeds"] = added["text_embeds"].to(unet.dtype)
    return unet(**moved, added_cond_kwargs=added).sample


@pytest.mark.parametrize("name", KERNELS)
def test_every_attention_layer_uses_the_chosen_kernel(name):
    unet = build_narrow_sdxl().unet.to("cuda", torch.bfloat16).requires_grad_(False)
    wanted = unet_output(unet)
    ChosenAttention(unet, name)
    with torch.profiler.profile() as profiler:
        found = unet_output(unet)
    calls = sum(event.count for event in profiler.key_averages() if event.key == KERNELS[name])
    assert calls == len(unet.attn_processors)
    assert (found - wanted).float().norm() < 0.02 * wanted.float().norm()


def test_fused_transformers_that_project_with_convolutions_compute_the_same():
    block = build_narrow_sd().unet.down_blocks[1].attentions[0].to("cuda", memory_format=torch.channels_last)
    image, tokens = torch.randn(2, 32, 8, 8, device="cuda"), torch.randn(2, 7, 32, device="cuda")
    results = []
    for fused in (False, True):
        if fused:
            fuse_blocks(block, Patches())
        x = image.to(memory_format=torch.channels_last).requires_grad_()
        output = block(x, tokens).sample
        results.append((output.detach(), *torch.autograd.grad(output.square().sum(), (x, block.proj_in.weight))))
    for plain, fused in zip(*results, strict=True):
        assert (fused - plain).norm() <= 1e-4 * plain.norm()


def test_fused_blocks_compute_the_same():
    unet = build_narrow_sdxl().unet.to("cuda", memory_format=torch.channels_last).requires_grad_(False)
    network = AdaptorNetwork(unet, Network(type="c3lier", rank=4, alpha=2.0))
    for adaptor in network.adaptors:
        torch.nn.init.normal_(adaptor.up, std=0.05)
    results = []
    for fused in (False, True):
        if fused:
            fuse_blocks(unet, Patches())
        network.zero_grad()
        output = unet_output(unet)
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad.clone() for p in network.parameters())])
    for plain, ours in zip(*results, strict=True):
        assert (ours - plain).norm() <= 1e-4 * plain.norm() + 1e-8


def test_a_bfloat16_step_with_all_kernels_has_the_gradient_of_a_plain_float32_one():
    """Joined projections, attention to a prompt, and sums of low rank are fused only in half precision."""
    found = []
    for dtype, fused in ((torch.float32, False), (torch.bfloat16, True)):
        unet = build_narrow_sdxl().unet.to("cuda", dtype, memory_format=torch.channels_last).requires_grad_(False)
        network = AdaptorNetwork(unet, Network(type="c3lier", rank=4, alpha=2.0, training_method="noxattn"))
        for adaptor in network.adaptors:
            torch.nn.init.normal_(adaptor.up, std=0.05, generator=torch.Generator("cuda").manual_seed(0))
        weights = FastPath(unet, [network], trains=True).weights[0] if fused else FlatWeights(network)
        network.set_multipliers(torch.tensor([-1.0, 2.0]))
        output = unet_output(unet).float()
        output.square().sum().backward()
        weights.gather_gradients()
        found.append((output.detach(), weights.master.grad))
    for plain, ours in zip(*found, strict=True):
        assert (ours - plain).norm() <= 0.05 * plain.norm()


@pytest.mark.parametrize("name", FLOWS)
def test_fused_blocks_of_transformers_compute_the_same(name):
    """In float32 to rounding; in bfloat16 as near to that as the plain path is."""
    found = []
    for dtype, fused in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        transformer, inputs = FLOWS[name](dtype)
        transformer.to("cuda")
        inputs = {k: v.to("cuda") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        network = random_network(transformer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(path, "can_fuse", lambda device, fused=fused: fused)
            fast = FastPath(transformer, [network], trains=True)
        network.set_multipliers(torch.tensor([-1.0, 2.0]))
        output = transformer(**inputs)[0].float()
        output.square().sum().backward()
        fast.weights[0].gather_gradients()
        found.append((output.detach(), fast.weights[0].master.grad))
    exact, single, plain, ours = found
    for wanted, other, low, lower in zip(exact, single, plain, ours, strict=True):
        assert (other - wanted).norm() <= 1e-4 * wanted.norm()
        assert (lower - wanted).norm() <= max(1.5 * (low - wanted).norm(), 0.01 * wanted.norm())


@pytest.mark.parametrize("uses", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_a_bfloat16_model_are_not_rounded_to_it(kind, uses):
    """They are products of bfloat16 matrices, written in float32."""
    assert_float32_resolution(kind, "cuda", uses)
