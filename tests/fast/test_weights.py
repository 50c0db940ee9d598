"""The weights that fused layers read follow the master, and their gradients arrive there in float32."""

from types import SimpleNamespace

import pytest
import torch
from exact_gradients import LAYERS, assert_float32_resolution
from networks import random_inputs, random_network, unet_output
from sliders.adaptors import ALGORITHMS
from sliders.adaptors.lora import LoRA
from sliders.fast.frozen import PlainProduct
from sliders.fast.low_rank import FusedLoRA
from sliders.fast.path import FastPath
from sliders.fast.weights import FastWeights
from sliders.models.sdxl.narrow import build_narrow_sdxl


def inputs_in(dtype):
    inputs = random_inputs()
    inputs = {k: v.to(dtype) if k in ("sample", "encoder_hidden_states") else v for k, v in inputs.items()}
    inputs["added_cond_kwargs"]["text_embeds"] = inputs["added_cond_kwargs"]["text_embeds"].to(dtype)
    return inputs


def test_a_bfloat16_model_computes_with_the_copy_and_learns_in_the_master():
    unet = build_narrow_sdxl().unet.requires_grad_(False).to(memory_format=torch.channels_last).to(torch.bfloat16)
    network = random_network(unet)
    inputs = inputs_in(torch.bfloat16)
    with torch.no_grad():
        plain = unet(**inputs).sample
        (flat,) = FastPath(unet, [network], trains=True).weights
        assert torch.allclose(unet(**inputs).sample.float(), plain.float(), atol=0.05, rtol=0.05)
        flat.master.mul_(3)
        assert torch.allclose(
            unet(**inputs).sample.float(), plain.float(), atol=0.05, rtol=0.05
        )  # the copy is not updated yet
        flat.refresh()
        assert not torch.allclose(unet(**inputs).sample.float(), plain.float(), atol=0.05, rtol=0.05)
    unet(**inputs).sample.float().square().sum().backward()
    flat.gather_gradients()
    assert flat.master.grad.norm() > 0
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_copies_beside_frozen_weights_follow_the_master_and_leave_the_model_as_it_was():
    unets = [build_narrow_sdxl().unet.requires_grad_(False).to(memory_format=torch.channels_last) for _ in range(2)]
    base = unet_output(unets[0])
    network, reference = (random_network(unet) for unet in unets)
    path = FastPath(unets[0], [network])
    with torch.no_grad():
        path.weights[0].master.mul_(1.5)
        for parameter, changed in zip(reference.parameters(), network.parameters(), strict=True):
            parameter.copy_(changed)
    path.weights[0].refresh()
    assert torch.allclose(*(unet_output(unet) for unet in unets), atol=1e-5)
    path.restore()
    network.remove()
    assert torch.equal(unet_output(unets[0]), base)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_gradient_of_a_bfloat16_model_is_that_of_a_float32_one_up_to_rounding(algo):
    """Through autograd or not; and a second backward pass replaces it."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        unet = build_narrow_sdxl().unet.requires_grad_(False).to(dtype, memory_format=torch.channels_last)
        (flat,) = FastPath(unet, [random_network(unet, algo=algo)], trains=True).weights
        for _ in range(2):
            unet(**inputs_in(dtype)).sample.float().square().sum().backward()
            flat.gather_gradients()
        found.append(flat.master.grad)
    plain, ours = found
    assert ours.dtype == torch.float32
    assert (ours - plain).norm() <= 0.05 * plain.norm()


@pytest.mark.parametrize("uses", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_a_bfloat16_model_are_not_rounded_to_it(kind, uses):
    """Neither those of layers that run once, nor the sums of those that run several times. A GPU has other kernels."""
    assert_float32_resolution(kind, "cpu", uses)


@pytest.mark.parametrize("fused", [False, True])
def test_multipliers_are_not_rounded_to_bfloat16(fused):
    """0.67 · 0.5 would be 0.3359, and 150 times that 50.5."""
    layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer.weight.zero_()
    lora = LoRA(layer, rank=1, alpha=0.5)
    torch.nn.init.constant_(lora.down, 150)
    torch.nn.init.constant_(lora.up, 1)
    weights = FastWeights(SimpleNamespace(adaptors=[lora]), torch.bfloat16)
    compute = FusedLoRA.of(PlainProduct, [lora], weights) if fused else lora
    found = compute(torch.ones(1, 1, 1, dtype=torch.bfloat16), torch.tensor([0.67]) * lora.gain)
    assert found.dtype == torch.bfloat16 and found.item() == 50.25
