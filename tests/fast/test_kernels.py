"""The Triton kernels against PyTorch in float64; without a GPU, in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from diffusers.models.resnet import ResnetBlock2D
from networks import random_inputs, random_network
from sliders.compute.patches import Patches, unpatch
from sliders.fast.blocks import fuse_blocks
from sliders.fast.kernel_support import own_kernels
from sliders.models.sdxl.narrow import build_narrow_sdxl
from torch.nn import functional as F

kernels = pytest.importorskip("sliders.fast.kernels", reason="needs Triton", exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # Triton's interpreter cannot multiply bfloat16 matrices


def assert_alike(ours, exact):
    if ours.dtype == torch.float32:
        assert torch.allclose(ours.double(), exact, atol=1e-4, rtol=1e-4)
    else:
        assert (ours.double() - exact).norm() < 0.01 * exact.norm()


# (batch, channels, height, width, groups, mean): sizes that are not multiples of chunks and tiles, a mean far from
# zero, more chunks than are read at once
SHAPES = [(2, 96, 6, 11, 32, 0.0), (1, 160, 5, 3, 4, 0.0), (1, 64, 16, 16, 32, 50.0)]
MANY_CHUNKS = [(1, 4, 64, 65, 2, 3.0), (1, 160, 33, 64, 2, 3.0)]


@pytest.mark.parametrize(
    ("shape", "silu"), [*((s, silu) for s in SHAPES for silu in (True, False)), *((s, True) for s in MANY_CHUNKS)]
)
def test_group_norm(shape, silu):
    *size, groups, mean = shape
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(size, generator=generator) * 2 + mean).to(DEVICE)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(2, size[1], generator=generator).to(DEVICE)
    exact_x = x.detach().double().requires_grad_()
    exact = F.group_norm(exact_x, groups, weight.double(), bias.double(), 1e-5)
    exact = F.silu(exact) if silu else exact

    _, ours = kernels.GroupNormSiLU.apply(x, None, weight, bias, groups, 1e-5, silu)

    assert_alike(ours, exact)
    upstream = torch.randn(size, generator=generator).to(DEVICE)
    assert_alike(*(torch.autograd.grad(y, v, upstream.to(y.dtype))[0] for y, v in ((ours, x), (exact, exact_x))))


SHIFTED = [(2, 320, 5, 7, 32, 0.0), (1, 960, 5, 13, 32, 50.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHIFTED)
def test_group_norm_of_an_image_to_which_an_embedding_is_added(shape, dtype):
    """The embedding may be part of wider rows."""
    *size, groups, mean = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator) * 2 + mean
    shift = torch.randn(size[0], size[1] + 7, generator=generator) * 3
    weight, bias = torch.randn(2, size[1], generator=generator).to(DEVICE, dtype)
    x, shift = x.to(DEVICE, dtype, memory_format=torch.channels_last), shift.to(DEVICE, dtype)[:, : size[1]]
    inputs = (x.requires_grad_(), shift.requires_grad_())
    exact_inputs = tuple(t.detach().double().requires_grad_() for t in inputs)
    total = exact_inputs[0] + exact_inputs[1][:, :, None, None]
    exact = F.silu(F.group_norm(total, groups, weight.double(), bias.double(), 1e-5))

    _, ours = kernels.GroupNormSiLU.apply(*inputs, weight, bias, groups, 1e-5, True)

    assert_alike(ours, exact)
    upstream = torch.randn(size, generator=generator).to(DEVICE, dtype)
    gradients = torch.autograd.grad(ours, inputs, upstream)
    for found, wanted in zip(gradients, torch.autograd.grad(exact, exact_inputs, upstream.double()), strict=True):
        assert_alike(found, wanted)
    _, alone = kernels.GroupNormSiLU.apply(x.detach(), shift, weight, bias, groups, 1e-5, True)
    assert torch.equal(torch.autograd.grad(alone, shift, upstream)[0], gradients[1]), "without a gradient of x"


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(dtype, torch.channels_last) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    + [(torch.float32, torch.contiguous_format)],
)
def test_a_gradient_that_skips_a_group_norm_is_added(dtype, layout):
    """Images and gradients may be parts of wider images. Those that are channels-last are not copied."""
    generator = torch.Generator().manual_seed(0)
    wide = (torch.randn(2, 160, 5, 7, generator=generator).to(DEVICE, dtype) for _ in range(3))
    x, *upstream = (t.to(memory_format=layout)[:, i : i + 96] for t, i in zip(wide, (0, 64, 32), strict=True))
    weight, bias = torch.randn(2, 96, generator=generator).to(DEVICE, dtype)
    exact_x = x.double().requires_grad_()
    exact = exact_x * 1, F.silu(F.group_norm(exact_x, 32, weight.double(), bias.double(), 1e-5))

    with torch.profiler.profile() as profiler:
        ours = kernels.GroupNormSiLU.apply(x.requires_grad_(), None, weight, bias, 32, 1e-5, True)
        found = torch.autograd.grad(ours, x, upstream, retain_graph=True)[0]

    assert torch.equal(ours[0], x)
    assert_alike(ours[1], exact[1])
    assert_alike(found, torch.autograd.grad(exact, exact_x, [g.double() for g in upstream])[0])
    assert torch.equal(torch.autograd.grad(ours[0], x, upstream[0])[0], upstream[0]), "without a gradient of the norm"
    copied = any(event.key == "aten::clone" for event in profiler.key_averages())
    assert copied == (layout == torch.contiguous_format)


def test_geglu():
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(3, 5, 2 * 1500, generator=generator)).to(DEVICE).requires_grad_()  # with tails
    exact_x = x.detach().double().requires_grad_()
    linear, gate = exact_x.chunk(2, -1)
    exact = linear * F.gelu(gate)

    ours = kernels.GEGLU.apply(x)

    assert_alike(ours, exact)
    upstream = torch.randn(3, 5, 1500, generator=generator).to(DEVICE)
    assert_alike(*(torch.autograd.grad(y, v, upstream.to(y.dtype))[0] for y, v in ((ours, x), (exact, exact_x))))


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(
    ("count", "rows", "width", "rank", "biased"), [(3, 2 * 70, 130, 40, True), (1, 2 * 3, 24, 96, False)]
)
def test_a_scaled_product_of_low_rank_is_added(count, rows, width, rank, biased, dtype):
    """To matrices side by side in wider rows; weights may be transposed."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(rows, count * (width + rank), generator=generator).to(DEVICE, dtype)
    out, narrow = (
        part.unflatten(1, (count, -1)).transpose(0, 1) for part in wide.split([count * width, count * rank], 1)
    )
    shapes = ((count, width, rank), (2,), (count, width))
    weight, strength, bias = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes)
    bias = bias if biased else None
    factor = strength.double().repeat_interleave(rows // 2)[:, None]
    exact = out.double() + narrow.double() * factor @ weight.double().mT
    exact += bias.double()[:, None] if biased else 0
    exact_narrow = narrow.double() * factor

    scaled = kernels.add_scaled_product(out, narrow, weight.mT, strength, bias)

    assert_alike(scaled, exact_narrow)
    assert_alike(out, exact)
    assert_alike(narrow, exact_narrow / factor)
    assert scaled.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize(("rows", "width", "rank", "padded"), [(2 * 70, 130, 40, 192), (2 * 3, 20, 5, 25)])
def test_a_scaled_matrix_is_put_beside_another(rows, width, rank, padded):
    """Which is a part of wider rows."""
    generator = torch.Generator().manual_seed(0)
    wide, narrow, strength = (
        torch.randn(s, generator=generator).to(DEVICE, HALF) for s in ((rows, width + 8), (rows, rank), 2)
    )
    left = wide[:, 8:]
    exact = narrow.double() * strength.double().repeat_interleave(rows // 2)[:, None]

    both, scaled = kernels.beside_scaled(left, narrow, strength, padded)

    assert_alike(scaled, exact)
    assert torch.equal(both[:, :width], left)
    assert torch.equal(both[:, width:], F.pad(scaled, (0, padded - width - rank)))


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("queries", "keys", "channels"), [(70, 77, 64), (33, 5, 40)])
def test_attention_to_few_keys(queries, keys, channels, dtype):
    """Of several heads, whose queries, keys and values lie between others, and whose upstream gradient is transposed."""
    generator = torch.Generator().manual_seed(0)
    wide = [torch.randn(2, n, 3, 2 * channels, generator=generator).to(DEVICE, dtype) for n in (queries, keys, keys)]
    query, key, value = (t[..., channels:] for t in wide)
    query.requires_grad_()
    exact_query = query.detach().double().requires_grad_()
    heads_first = (t.transpose(1, 2) for t in (exact_query, key.double(), value.double()))
    exact = F.scaled_dot_product_attention(*heads_first).transpose(1, 2)

    ours = kernels.AttentionToFewKeys.apply(query, key, value)

    assert_alike(ours, exact)
    upstream = torch.randn(channels, 3, queries, 2, generator=generator).to(DEVICE, dtype).permute(3, 2, 1, 0)
    gradients = (torch.autograd.grad(y, q, upstream.to(y.dtype))[0] for y, q in ((ours, query), (exact, exact_query)))
    assert_alike(*gradients)


@pytest.mark.parametrize("added", ["wide", "contiguous", None])
def test_a_residual_and_its_layer_norm(added):
    """The addend may be part of wider rows, or missing."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 5, 96, generator=generator).to(DEVICE).requires_grad_() for _ in range(2))
    if added is None:
        y = torch.zeros_like(x)
    weight, bias, up_total, up_normal = (torch.randn(n, generator=generator).to(DEVICE) for n in (96, 96, 96, 96))
    exact = [t.detach().double().requires_grad_() for t in (x, y)]
    total = exact[0] + exact[1]
    normal = F.layer_norm(total, (96,), weight.double(), bias.double(), 1e-5)

    given = {"wide": F.pad(y, (0, 7))[..., :96], "contiguous": y, None: None}[added]
    ours = kernels.AddLayerNorm.apply(x, given, weight, bias, 1e-5)

    assert_alike(ours[0], total)
    assert_alike(ours[1], normal)
    (ours[0] * up_total + ours[1] * up_normal).sum().backward()
    (total * up_total + normal * up_normal).sum().backward()
    assert_alike(x.grad, exact[0].grad)
    if added is not None:
        assert_alike(y.grad, exact[1].grad)


def plain_group_norm(x, weight, bias):
    return F.silu(F.group_norm(x, 32, weight, bias, 1e-5))


def plain_geglu(x, *_):
    linear, gate = x.chunk(2, -1)
    return linear * F.gelu(gate)


def plain_layer_norm(x, weight, bias):
    return F.layer_norm(x, (64,), weight, bias, 1e-5)


BFLOAT16 = {  # {name: (size of x, our kernel, PyTorch's operation)}
    "group norm": (
        (2, 64, 5, 4),
        lambda x, w, b: kernels.GroupNormSiLU.apply(x, None, w, b, 32, 1e-5, True)[1],
        plain_group_norm,
    ),
    "geglu": ((3, 5, 96), lambda x, w, b: kernels.GEGLU.apply(x), plain_geglu),
    "layer norm": ((3, 5, 64), lambda x, w, b: kernels.AddLayerNorm.apply(x, 0 * x, w, b, 1e-5)[1], plain_layer_norm),
}


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_is_rounded_once_at_the_end(name):
    """On a GPU by at most half a unit in the last place. Triton's interpreter truncates: up to a whole unit."""
    size, ours, exact = BFLOAT16[name]
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator).to(DEVICE, torch.bfloat16) for s in (size, 64, 64))
    x = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
    single, double = x.requires_grad_(), x.detach().double().requires_grad_()
    found, wanted = ours(single, weight, bias), exact(double, weight.double(), bias.double())
    upstream = torch.randn(found.shape, generator=generator).to(DEVICE, torch.bfloat16)
    gradients = (torch.autograd.grad(y, v, upstream.to(y.dtype))[0] for y, v in ((found, single), (wanted, double)))
    for low, high in ((found, wanted), tuple(gradients)):
        assert low.dtype == torch.bfloat16
        half = 2**-8 * high.abs().clamp(min=2**-6)
        assert ((low.double() - high).abs() <= (1.01 if DEVICE == "cuda" else 2.01) * half).all()


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_rows_are_unpacked_above_others(dtype, rows, more):
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(rows, 300, generator=generator) * 40).to(dtype).to(DEVICE)
    step, below = torch.rand(rows, 1, generator=generator).to(DEVICE), torch.randn(more, 300).to(DEVICE)
    found = kernels.unpack_rows(weight, step, torch.float32, below if more else None, rows + more + 2 * (more > 0))
    assert_alike(found[:rows], weight.double() * step.double())
    assert torch.equal(found[rows:], F.pad(below, (0, 0, 0, 2 * (more > 0))))


@pytest.mark.skipif(DEVICE == "cuda", reason="tested in test_gpu.py")
def test_fused_blocks_compute_the_same():
    unet = build_narrow_sdxl().unet.to(memory_format=torch.channels_last).requires_grad_(False)
    network = random_network(unet)
    inputs, results = random_inputs(rows=1), []
    inputs["sample"] = inputs["sample"][..., :8, :12]  # Triton's interpreter takes seconds for each block of more
    for fuse in (lambda unet, patches: None, fuse_blocks):
        fuse(unet, Patches())
        network.zero_grad()
        output = unet(**inputs).sample
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad.clone() for p in network.parameters())])
    assert all("forward" in m.__dict__ for m in (unet.conv_norm_out, unet.conv_act))
    for plain, fused in zip(*results, strict=True):
        assert (fused - plain).norm() <= 1e-4 * plain.norm() + 1e-8


@torch.no_grad()
def test_a_fused_vae_encodes_and_decodes_the_same():
    vae = build_narrow_sdxl().vae.to(DEVICE, memory_format=torch.channels_last)
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    results = []
    with torch.backends.cudnn.flags(allow_tf32=False):
        for fuse in (lambda vae, patches: None, fuse_blocks):
            fuse(vae, Patches())
            latents = vae.encode(image).latent_dist.mean
            results.append((latents, vae.decode(latents).sample))
    for plain, fused in zip(*results, strict=True):
        assert (fused - plain).norm() <= 1e-5 * plain.norm()
    blocks = [m for m in vae.modules() if isinstance(m, ResnetBlock2D)]
    ends = [part for m in (vae.encoder, vae.decoder) for part in (m.conv_norm_out, m.conv_act)]
    assert all("forward" in m.__dict__ for m in (*blocks, *ends))
    unpatch(vae)
    assert not any("forward" in m.__dict__ for m in vae.modules())


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's builds for other systems lack NVIDIA's tools")
def test_kernels_build_for_every_gpu_generation_without_spilling_registers():
    """RTX 20, H100, RTX 50. Triton does not report spilled registers, which make a kernel slow."""
    capabilities = ("7.5", "9.0", "12.0")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = ROOT / "tests" / "build_kernels.py"
    result = subprocess.run(
        [sys.executable, script, *capabilities], env=environment, capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in result.stdout.splitlines()]
    built = {capability: {row[1] for row in rows if row[0] == capability} for capability in capabilities}
    assert built["9.0"] == built["12.0"]
    assert built["9.0"] - built["7.5"] == {"_attend", "_attend_backward", "_add_scaled_product"}
    assert len(built["9.0"]) == 21
    assert [row for row in rows if int(row[3]) > 0 or int(row[4]) > 48 * 1024] == []


def test_this_projects_kernels_are_told_from_others_by_their_names():
    """As a profiler lists them, where most of PyTorch's own names contain `kernel`, `add` or `norm`."""
    assert {
        "_geglu_backward",
        "_normalise",
        "_unpack_rows",
        "_attend",
        "_rotate",
        "_swiglu",
        "_add_rms_norm",
    } <= own_kernels()
    others = (
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul> >",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<_add_>", "fused_add_kernel", "_kernel", "geglu",
    )  # fmt: skip
    assert own_kernels().isdisjoint(others)
