"""Each algorithm against its definition: a dense ΔW in float64, built from what it writes to files."""

import pytest
import torch
from networks import random_inputs, random_network, randomize, unet_output
from sliders.adaptors import ALGORITHMS
from sliders.adaptors.lokr import LoKr, factorized
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network
from sliders.formats.slider_file import load_slider, save_slider, slider_tensors
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.system.weight_files import open_weights
from torch import nn
from torch.nn import functional as F

RANK, ALPHA = 3, 2.0
LAYERS = {
    "linear": lambda: nn.Linear(24, 40),
    "square linear without bias": lambda: nn.Linear(30, 30, bias=False),
    "1×1": lambda: nn.Conv2d(24, 16, 1),
    "3×3": lambda: nn.Conv2d(20, 24, 3, padding=1),
    "3×3, stride 2": lambda: nn.Conv2d(16, 16, 3, stride=2, padding=1),
}
VARIANTS = {  # {name: (algo, rank, further arguments)}
    **{algo: (algo, RANK, {}) for algo in ALGORITHMS},
    "lokr of low rank": ("lokr", 2, {"factor": 2}),
    "lokr with a factor": ("lokr", RANK, {"factor": 4}),
}


def product(*factors):
    """The matrix product of weights, of which only the last may have a kernel larger than 1×1."""
    *first, last = factors
    matrix = last.flatten(1)
    for factor in reversed(first):
        matrix = factor.flatten(1) @ matrix
    return matrix


def kronecker(w1, w2):
    """[l, m] and [k, n, …] → [l · k, m · n, …], element by element."""
    blocks = [[w1[i, j] * w2 for j in range(w1.shape[1])] for i in range(w1.shape[0])]
    return torch.cat([torch.cat(row, 1) for row in blocks])


def dense(parts, weight):
    """ΔW at multiplier 1 for a layer's weight, by the algorithms' definitions."""
    alpha = parts.get("alpha")
    if "diff" in parts:
        return parts["diff"]
    if "lora_up.weight" in parts:
        gain = alpha / parts["lora_down.weight"].shape[0]
        delta = product(parts["lora_up.weight"], parts["lora_down.weight"])
    elif "hada_w1_a" in parts:
        gain = alpha / parts["hada_w1_a"].shape[1]
        delta = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    elif "a1.weight" in parts:
        gain = alpha / parts["a1.weight"].shape[1]
        a = product(parts["a1.weight"], parts["a2.weight"])
        moved = torch.tensordot(weight, a, ([1], [0])).movedim(-1, 1)  # the weight's inputs mixed by a
        delta = moved + product(parts["b1.weight"], parts["b2.weight"]).view(weight.shape)
    elif "lokr_w2" in parts:
        gain, delta = 1.0, kronecker(parts["lokr_w1"], parts["lokr_w2"])
    else:
        gain = alpha / parts["lokr_w2_a"].shape[1]
        w2 = product(parts["lokr_w2_a"], parts["lokr_w2_b"])
        w2 = w2.view(len(w2), weight.shape[1] // parts["lokr_w1"].shape[1], *weight.shape[2:])
        delta = kronecker(parts["lokr_w1"], w2)
    return gain * delta.view(weight.shape)


def layer_product(layer, x, weight):
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding)
    return x @ weight.T


def make(variant, kind, seed=0):
    """A layer, a randomised adaptor of it, and inputs [3, …]."""
    torch.manual_seed(seed)
    layer = LAYERS[kind]().requires_grad_(False)
    algo, rank, arguments = VARIANTS[variant]
    adaptor = ALGORITHMS[algo](layer, rank, ALPHA, torch.Generator().manual_seed(seed), **arguments)
    randomize(adaptor, seed)
    x = (
        torch.randn(3, 5, layer.in_features)
        if isinstance(layer, nn.Linear)
        else torch.randn(3, layer.in_channels, 7, 6)
    )
    return layer, adaptor, x


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adaptor_of_its_tensors_alone_is_the_same_and_states_its_difference(variant, kind):
    layer, adaptor, x = make(variant, kind)
    parts = {part: t.double() for part, t in adaptor.tensors().items()}
    again = type(adaptor).holding(layer, adaptor.tensors())
    wanted = dense(parts, layer.weight.double())
    assert again.difference().dtype is torch.float32
    assert relative_error(adaptor.difference(), wanted) < 1e-6
    assert relative_error(again.difference(), wanted) < 1e-6
    scaling = torch.tensor([0.67, -1.0, 2.0])
    outputs = [a.adapted(layer.forward, x, scaling * a.gain) for a in (adaptor, again)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_output_and_gradients_are_those_of_the_dense_difference(variant, kind):
    layer, adaptor, x = make(variant, kind)
    multipliers = torch.tensor([0.67, -1.0, 2.0])
    x.requires_grad_()
    out = adaptor.adapted(layer.forward, x, multipliers * adaptor.gain)
    upstream = torch.randn_like(out)
    out.backward(upstream)

    parts = {part: t.double().requires_grad_(part != "alpha") for part, t in adaptor.tensors().items()}
    exact = x.detach().double().requires_grad_()
    delta = dense(parts, layer.weight.double())
    rows = [
        layer_product(layer, exact[i : i + 1], layer.weight.double() + m * delta) for i, m in enumerate(multipliers)
    ]
    bias = layer.bias.double() if layer.bias is not None else torch.zeros(1).double()
    wanted = torch.cat(rows) + (bias if isinstance(layer, nn.Linear) else bias[:, None, None])
    wanted.backward(upstream.double())

    assert relative_error(out, wanted.detach()) < 1e-6
    assert relative_error(x.grad, exact.grad) < 1e-6
    weights = dict(adaptor.named_parameters())
    used = {part: name for part, name in adaptor.PARTS.items() if name in weights}
    assert set(used.values()) == set(weights)
    for part, name in used.items():
        assert relative_error(weights[name].grad, parts[part].grad) < 2e-6, part


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adaptor_is_linear_in_the_multiplier_of_each_row_and_nothing_at_0(variant, kind):
    layer, adaptor, x = make(variant, kind)
    base = layer(x)

    def change(multipliers):
        return (adaptor.adapted(layer.forward, x, torch.tensor(multipliers) * adaptor.gain) - base).detach()

    once = change([1.0])
    assert once.abs().max() > 1e-4
    mixed = change([0.0, -1.0, 2.5])
    assert mixed[0].abs().max() == 0
    for row, multiplier in enumerate((0.0, -1.0, 2.5)):
        assert torch.allclose(mixed[row], multiplier * once[row], atol=2e-5 * max(1, once.abs().max().item()))
        assert torch.allclose(mixed[row], change([multiplier])[row], atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adaptor_adds_exactly_nothing_at_the_start_and_can_learn(variant, kind):
    torch.manual_seed(0)
    layer = LAYERS[kind]().requires_grad_(False)
    algo, rank, arguments = VARIANTS[variant]
    adaptor = ALGORITHMS[algo](layer, rank, ALPHA, torch.Generator().manual_seed(0), **arguments)
    x = (
        torch.randn(2, 4, layer.in_features)
        if isinstance(layer, nn.Linear)
        else torch.randn(2, layer.in_channels, 5, 5)
    )
    out = adaptor.adapted(layer.forward, x, torch.tensor([2.0, -1.0]) * adaptor.gain)
    assert torch.equal(out, layer(x))
    out.square().sum().backward()
    assert any(p.grad.abs().max() > 0 for p in adaptor.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_activations_and_autocast_give_the_same_up_to_rounding(variant):
    layer, adaptor, x = make(variant, "3×3")
    scaling = torch.tensor([0.67, -1.0, 2.0]) * adaptor.gain
    exact = adaptor.adapted(layer.forward, x, scaling)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = adaptor.adapted(layer.forward, x, scaling)
    halved = layer.bfloat16()
    half = adaptor.adapted(halved.forward, x.bfloat16(), scaling)
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        assert relative_error(found, exact.double()) < 0.02


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_network_of_each_algorithm_is_removed_bit_for_bit(algo):
    unet = build_narrow_sdxl().unet
    base = unet_output(unet)
    network = random_network(unet, algo=algo)
    network.set_multipliers(torch.tensor([0.67, -1.0]))
    both = unet_output(unet)
    for row, multiplier in enumerate((0.67, -1.0)):
        network.set_multipliers(torch.tensor([multiplier]))
        assert torch.allclose(unet_output(unet)[row], both[row], atol=2e-5)
        assert not torch.allclose(both[row], base[row], atol=1e-4)
    network.set_multipliers(torch.zeros(1))
    assert torch.equal(unet_output(unet), base)
    network.remove()
    assert torch.equal(unet_output(unet), base)
    assert not any("forward" in module.__dict__ for module in unet.modules())


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_file_of_another_alpha_has_the_effect_it_had(tmp_path, algo):
    unet = build_narrow_sdxl().unet
    network = random_network(unet, algo=algo)
    wanted = unet_output(unet)
    path = tmp_path / "slider.safetensors"
    save_slider(path, slider_tensors(network, SDXL_FAMILY, torch.float32), {}, SDXL_FAMILY)
    network.remove()
    settings = Network(type="c3lier", rank=4, alpha=1.0, training_method="full", algo=algo)
    again = AdaptorNetwork(unet, settings, seed=9)
    assert not torch.allclose(unet_output(unet), wanted, atol=1e-3)
    load_slider(open_weights(path, ""), again, SDXL_FAMILY)
    assert torch.allclose(unet_output(unet), wanted, atol=2e-6)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_gradients_of_a_step_do_not_depend_on_checkpointing_or_compilation(algo):
    """The forward pass is repeated inside the backward pass, with the multipliers of the rows."""
    found = []
    for option in ("plain", "checkpointed"):
        unet = build_narrow_sdxl().unet.requires_grad_(False)
        network = random_network(unet, algo=algo)
        if option == "checkpointed":
            unet.train().enable_gradient_checkpointing()
        network.set_multipliers(torch.tensor([0.67, 2.0]))
        unet(**random_inputs()).sample.square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert found[0].norm() > 0
    assert relative_error(found[1], found[0].double()) < 1e-5


@pytest.mark.parametrize(
    ("size", "factor", "pair"),
    [
        (320, None, (16, 20)), (640, None, (20, 32)), (1280, None, (32, 40)), (2048, None, (32, 64)), (2560, None, (40, 64)),
        (250, None, (10, 25)), (127, None, (1, 127)), (1024, None, (32, 32)), (360, 16, (15, 24)), (250, 4, (2, 125)),
        (512, 8, (8, 64)), (1280, 16, (16, 80)), (320, 32, (10, 32)), (127, 4, (1, 127)), (1280, 640, (2, 640)),
    ],
)  # fmt: skip
def test_lokr_splits_sizes_as_lycoris_does(size, factor, pair):
    assert factorized(size, factor) == pair


@pytest.mark.parametrize(("rank", "parts"), [(11, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}), (12, {"lokr_w1", "lokr_w2"})])
def test_lokr_factorises_its_second_matrix_only_if_that_saves_weights(rank, parts):
    adaptor = LoKr(nn.Linear(46, 46), rank, alpha=5.0)  # 2 × 23
    found = adaptor.tensors()
    assert set(found) == {*parts, "alpha"}
    assert adaptor.gain == (5 / 11 if rank == 11 else 1)
    assert found["alpha"] == (5 if rank == 11 else rank)  # so that alpha / rank is the gain
