"""The Triton kernels of flow-matching transformers against PyTorch in float64; without a GPU, in Triton's interpreter."""

import pytest
import torch
from torch.nn import functional as F

kernels = pytest.importorskip("sliders.fast.kernels", reason="needs Triton", exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-5


def draw(*sizes, seed=0, dtype=torch.float32):
    """Tensors of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(DEVICE, dtype) for size in sizes]


def wide(size, dtype=torch.float32):
    """A tensor that is a part of wider rows."""
    (found,) = draw((*size[:-1], size[-1] + 7), seed=1, dtype=dtype)
    return found[..., 5:-2]


def exact(*tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def assert_alike(found, wanted, dtype=torch.float32):
    bound = 1e-5 if dtype == torch.float32 else 0.01
    assert found.dtype == dtype
    assert (found.double() - wanted).norm() <= bound * wanted.norm()


def assert_same_gradients(found, wanted, inputs, exact_inputs, dtype=torch.float32):
    """Of sums of the results, each times random numbers."""
    upstream = draw(*(t.shape for t in found), seed=2, dtype=dtype)
    gradients = torch.autograd.grad(found, inputs, upstream)
    exact_gradients = torch.autograd.grad(wanted, exact_inputs, [u.double() for u in upstream])
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert_alike(gradient, exact_gradient, dtype)


DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "shared"), [(96, False), (40, True)])
def test_a_gated_residual_and_its_modulated_layer_norm(width, shared, dtype):
    """Of factors that are parts of wider rows, or the same for all rows of the batch."""
    x, y = (t.requires_grad_() for t in draw((2, 5, width), (2, 5, width), dtype=dtype))
    (modulation,) = draw((1 if shared else 2, 3 * width), seed=3, dtype=dtype)
    shift, scale, gate = modulation.chunk(3, -1)
    inputs, (exact_shift, exact_scale, exact_gate) = exact(x, y), exact(shift[:, None], scale[:, None], gate[:, None])
    total = inputs[0] + exact_gate * inputs[1]
    wanted = total, F.layer_norm(total, (width,), eps=EPS) * (1 + exact_scale) + exact_shift

    found = kernels.AddLayerNorm.apply(x, y, scale, shift, EPS, gate, 1.0)

    for ours, other in zip(found, wanted, strict=True):
        assert_alike(ours, other, dtype)
    assert_same_gradients(found, wanted, (x, y), inputs, dtype)


def rms(x, weight=None):
    found = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
    return found if weight is None else found * weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("parts", ["added", "normalised", "both"])
def test_rms_norms_around_a_residual(parts, modulated, dtype):
    """What is added may be part of wider rows, or missing, and so may the norm of the sum."""
    x, inner, weight = draw((2, 3, 96), (96,), (96,), dtype=dtype)
    y = wide((2, 3, 96), dtype).detach()
    (modulation,) = draw((2, 2 * 96), seed=3, dtype=dtype)
    gate, scale = modulation.chunk(2, -1) if modulated else (None, None)
    given = [x.requires_grad_(), y.requires_grad_()][: 1 if parts == "normalised" else 2]
    inputs = exact(*given)
    total = inputs[0]
    if parts != "normalised":
        total = total + rms(inputs[1], inner.double()) * (gate.double().tanh()[:, None] if modulated else 1)
    normal = rms(total, weight.double()) * (1 + scale.double()[:, None] if modulated else 1)
    wanted = (total,) if parts == "added" else (total, normal)

    found = kernels.AddRMSNorm.apply(
        x, None if parts == "normalised" else y, inner, gate, None if parts == "added" else weight, scale, EPS
    )

    found = found if isinstance(found, tuple) else (found,)
    for ours, other in zip(found, wanted, strict=True):
        assert_alike(ours, other, dtype)
    assert_same_gradients(found, wanted, given, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_of_two_tensors_and_of_halves(dtype):
    """Whose rows are parts of wider ones."""
    x = wide((2, 3, 1200), dtype).detach().requires_grad_()
    (exact_x,) = exact(x)
    gate, linear = exact_x.chunk(2, -1)
    wanted = F.silu(gate) * linear
    for found in (kernels.SwiGLUOfHalves.apply(x), kernels.SwiGLU.apply(*x.chunk(2, -1))):
        assert_alike(found, wanted, dtype)
        upstream = wide((2, 3, 600), dtype)
        gradients = torch.autograd.grad(found, x, upstream)
        (exact_gradient,) = torch.autograd.grad(wanted, exact_x, upstream.double(), retain_graph=True)
        assert_alike(gradients[0], exact_gradient, dtype)


HEADS, CHANNELS = 3, 12  # neither fills a program


def rotated(x, weight, cos, sin):
    """x [B, n, heads · d] → [B, n, heads, d], by rotating complex numbers."""
    x = rms(x.unflatten(-1, (HEADS, CHANNELS)), weight.double())
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    angles = torch.complex(cos.double(), sin.double()).unsqueeze(-2)  # beside the heads
    return torch.view_as_real(pairs * angles).flatten(-2)


def plain_heads(x, norm, cos, sin):
    query, key, value = x.chunk(3, -1)
    return [
        rotated(query, norm.query, cos, sin),
        rotated(key, norm.key, cos, sin),
        value.unflatten(-1, (HEADS, CHANNELS)),
    ]


def head_norms(count, dtype):
    weights = draw(*[(CHANNELS,)] * (2 * count), seed=4, dtype=dtype)
    return tuple(kernels.HeadNorms(*weights[2 * i : 2 * i + 2], EPS) for i in range(count))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "of_rows"), [((4, 5), False), ((7,), True)])
def test_rotated_heads_of_streams(lengths, of_rows, dtype):
    """Whose rows are parts of wider ones; places may differ between rows of the batch; values need not get a gradient."""
    total, norms = sum(lengths), head_norms(len(lengths), dtype)
    streams = [wide((2, n, 3 * HEADS * CHANNELS), dtype).detach().requires_grad_() for n in lengths]
    (angles,) = draw(((2,) if of_rows else ()) + (total, CHANNELS // 2), seed=5)
    doubled = angles.repeat_interleave(2, -1)  # as tables have them: every second number is read
    cos, sin = doubled.cos()[..., ::2], doubled.sin()[..., ::2]
    inputs = exact(*streams)
    tables = zip(*(t.split(lengths, -2) for t in (cos, sin)), strict=True)
    found_parts = [plain_heads(x, norm, *table) for x, norm, table in zip(inputs, norms, tables, strict=True)]
    wanted = [torch.cat(parts, 1) for parts in zip(*found_parts, strict=True)]

    found = kernels.RotatedHeads.apply(cos, sin, HEADS, norms, *streams)

    for ours, other in zip(found, wanted, strict=True):
        assert_alike(ours, other, dtype)
    assert_same_gradients(found, wanted, streams, inputs, dtype)
    if len(lengths) > 1:
        alone = kernels.RotatedHeads.apply(cos, sin, HEADS, norms, streams[0].detach(), streams[1])
        assert_same_gradients(alone, wanted_again(inputs, norms, cos, sin, lengths), streams[1:], inputs[1:], dtype)


def wanted_again(inputs, norms, cos, sin, lengths):
    tables = zip(*(t.split(lengths, -2) for t in (cos, sin)), strict=True)
    parts = [plain_heads(x, norm, *table) for x, norm, table in zip(inputs, norms, tables, strict=True)]
    return [torch.cat(found, 1) for found in zip(*parts, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_and_feed_forward_of_one_projection(dtype):
    """The gradients of query and key may lie otherwise than the value's."""
    inner, hidden = HEADS * CHANNELS, 40
    x = wide((2, 4, 3 * inner + 2 * hidden), dtype).detach().requires_grad_()
    (norm,), (angles,) = head_norms(1, dtype), draw((4, CHANNELS // 2), seed=5)
    (exact_x,) = exact(x)

    def attend(query, key, value):  # of no use, but cheap, and of all three
        return (query * key.transpose(1, 3).transpose(1, 3) + value).flatten(2)

    parts = exact_x.split([3 * inner, hidden, hidden], -1)
    wanted = torch.cat(
        [attend(*plain_heads(parts[0], norm, angles.cos(), angles.sin())), F.silu(parts[1]) * parts[2]], -1
    )

    *heads, both = kernels.ParallelHeads.apply(x, angles.cos(), angles.sin(), HEADS, norm)
    found = kernels.PutLeft.apply(both, attend(*heads))

    assert_alike(found, wanted, dtype)
    assert_same_gradients([found], [wanted], [x], [exact_x], dtype)
