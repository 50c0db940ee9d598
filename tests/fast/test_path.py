"""The fast path computes what the plain path does, and gives everything back."""

import pytest
import torch
from networks import random_inputs, random_network, unet_output
from sliders.adaptors import ALGORITHMS
from sliders.compute.patches import ForeignPatchError, Patches, is_patched, unpatch
from sliders.compute.quantization import quantize
from sliders.fast.path import FastPath
from sliders.models.diffusers_unet.architecture import UNET
from sliders.models.sdxl.narrow import build_narrow_sdxl
from torch.nn import functional as F

KINDS = ("none", "int8", "mixed")  # mixed: some layers of the UNet are quantised


def make_unet(kind="none"):
    unet = build_narrow_sdxl().unet.requires_grad_(False)
    quantize(
        unet.mid_block if kind == "mixed" else unet,
        "none" if kind == "none" else "int8",
        "cpu",
        torch.float32,
        UNET.quantized,
    )
    return unet.to(memory_format=torch.channels_last)


def forwards(unet):
    return [module.__dict__.get("forward") for module in unet.modules()]


@pytest.mark.parametrize(
    ("kind", "algo", "method"),
    [*((kind, "lora", "full") for kind in KINDS), *(("none", algo, "noxattn") for algo in ALGORITHMS)],
)
def test_output_and_gradient_are_those_of_autograd(kind, algo, method):
    """At two multipliers, in float32, against PyTorch's autograd of the plain path."""
    unet = make_unet(kind)
    network = random_network(unet, method=method, algo=algo)
    network.set_multipliers(torch.tensor([-1.0, 2.0]))
    plain = unet(**random_inputs()).sample
    plain.square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    with FastPath(unet, [network], trains=True) as path:
        found = unet(**random_inputs()).sample
        found.square().sum().backward()
        path.weights[0].gather_gradients()
    assert torch.allclose(found, plain, atol=1e-5, rtol=1e-4)
    flat = path.weights[0].master.grad
    for name, p in network.named_parameters():
        gradient = flat.as_strided(p.shape, p.stride(), p.storage_offset())
        assert (gradient - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-6, name


def count_products(unet, monkeypatch):
    """The calls of `F.linear` in a forward pass."""
    calls, linear = [], F.linear
    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", lambda *args, **kwargs: calls.append(1) or linear(*args, **kwargs))
        unet_output(unet)
    return len(calls)


def test_query_key_and_value_are_one_product_and_so_are_the_prompts_of_all_layers(monkeypatch):
    unet = make_unet()
    network = random_network(unet, method="noxattn")
    plain = count_products(unet, monkeypatch)
    with FastPath(unet, [network]):
        assert count_products(unet, monkeypatch) < plain / 2


@pytest.mark.parametrize(
    ("method", "kind"), [("noxattn", "none"), ("noxattn", "int8"), ("noxattn", "mixed"), ("xattn", "none")]
)
def test_cross_attention_reads_the_prompts_of_each_pass(method, kind):
    """Its keys and values are one product, unless they are adapted, or of layers of several kinds."""
    unet = make_unet(kind)
    network = random_network(unet, method=method)
    prompts = [dict(random_inputs(), encoder_hidden_states=torch.randn(2, 77, 64)) for _ in range(2)]
    with torch.no_grad():
        wanted = [unet(**inputs).sample for inputs in prompts]
        for _ in range(2):
            with FastPath(unet, [network]):
                found = [unet(**inputs).sample for inputs in prompts]
                assert is_patched(unet) == (kind != "mixed" and method == "noxattn")
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))
    assert not torch.allclose(*wanted, atol=1e-3)


def test_layers_that_two_networks_adapt_and_passes_without_multipliers_stay_right():
    unet = make_unet()
    base = unet_output(unet)
    networks = [random_network(unet, method="noxattn"), random_network(unet, "lierla", "selfattn")]
    plain = unet_output(unet)
    with FastPath(unet, networks):
        assert torch.allclose(unet_output(unet), plain, atol=1e-5)
        for network in networks:
            network.set_multipliers(None)
        assert torch.allclose(unet_output(unet), base, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_everything_is_given_back(kind):
    unet = make_unet(kind)
    base, before, processors = unet_output(unet), forwards(unet), unet.attn_processors
    network = random_network(unet)
    adapted, plain = forwards(unet), unet_output(unet)
    with FastPath(unet, [network]):
        assert forwards(unet) != adapted
    assert forwards(unet) == adapted and unet.attn_processors == processors
    assert torch.allclose(
        unet_output(unet), plain, atol=1e-5
    )  # not bit for bit: the adaptors' weights are channels-last now
    network.remove()
    assert forwards(unet) == before
    assert torch.equal(unet_output(unet), base)


def test_a_module_that_other_software_has_patched_is_refused():
    unet = make_unet()
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    layer.forward = layer.forward
    with pytest.raises(ForeignPatchError, match="Linear: other software has replaced its forward"):
        random_network(unet)
    del layer.forward
    network = random_network(unet)
    layer.forward = lambda x: x
    with pytest.raises(ForeignPatchError, match="Linear"):
        FastPath(unet, [network])


def test_patches_are_restored_in_the_opposite_order():
    layer = torch.nn.Linear(2, 2)
    first, second = Patches(), Patches()
    first.replace(layer, lambda x: x)
    second.replace(layer, lambda x: 2 * x)
    with pytest.raises(RuntimeError, match="restore first what was patched later"):
        first.restore()
    second.restore()
    assert layer(1.0) == 1.0
    first.restore()
    assert "forward" not in layer.__dict__
    first.replace(layer, lambda x: x)
    unpatch(layer)
    first.restore()
    assert "forward" not in layer.__dict__
