"""The Triton kernels in Triton's own interpreter, on the CPU, against PyTorch in float64."""

import pytest
import torch
from sliders.fusion import fuse_blocks
from sliders.models.narrow import build_narrow_sdxl
from test_interop import random_inputs, random_network
from torch.nn import functional as F

kernels = pytest.importorskip("sliders.kernels", reason="needs Triton", exc_type=ImportError)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py runs them on the GPU")


def assert_alike(ours, exact):
    assert torch.allclose(ours.double(), exact, atol=1e-4, rtol=1e-4)


# batch, channels, height, width, groups, mean: chunks and blocks that do not come out even, a mean far from zero
@pytest.mark.parametrize("shape", [(2, 96, 6, 11, 32, 0.0), (1, 160, 5, 3, 4, 0.0), (1, 64, 16, 16, 32, 50.0)])
@pytest.mark.parametrize("silu", [True, False])
def test_group_norm(shape, silu):
    *size, groups, mean = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator) * 2 + mean
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(2, size[1], generator=generator)
    exact_x = x.detach().double().requires_grad_()
    exact = F.group_norm(exact_x, groups, weight.double(), bias.double(), 1e-5)
    exact = F.silu(exact) if silu else exact

    ours = kernels.GroupNormSiLU.apply(x, weight, bias, groups, 1e-5, silu)

    assert_alike(ours, exact)
    upstream = torch.randn(size, generator=generator)
    assert_alike(*(torch.autograd.grad(y, v, upstream.to(y.dtype))[0] for y, v in ((ours, x), (exact, exact_x))))


def test_geglu():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 2 * 1500, generator=generator).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    linear, gate = exact_x.chunk(2, -1)
    exact = linear * F.gelu(gate)

    ours = kernels.GEGLU.apply(x)

    assert_alike(ours, exact)
    upstream = torch.randn(3, 5, 1500, generator=generator)
    assert_alike(*(torch.autograd.grad(y, v, upstream.to(y.dtype))[0] for y, v in ((ours, x), (exact, exact_x))))


def test_fused_blocks_are_the_same_unet():
    unet = build_narrow_sdxl().unet.to(memory_format=torch.channels_last).requires_grad_(False)
    network = random_network(unet)
    results = []
    for fuse in (lambda unet: None, fuse_blocks):
        fuse(unet)
        network.zero_grad()
        output = unet(**random_inputs(rows=1)).sample
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad.clone() for p in network.parameters())])
    for plain, fused in zip(*results, strict=True):
        assert (fused - plain).norm() <= 1e-4 * plain.norm() + 1e-8
