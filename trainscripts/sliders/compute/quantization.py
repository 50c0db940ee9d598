"""`pretrained_model.quantize`: stores the linear layers of the denoiser's transformers in 8 or 4 bits per weight.

Most of the denoiser's weights are there. This saves memory only: products are still computed in the training precision.
Products in float8 were no faster: rounding their inputs took as long as they saved.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.compute.device import place
from sliders.system.errors import InputError

Unpack = Callable[[Tensor, Tensor, torch.dtype], Tensor]
BYTE = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def check_quantization(kind: str, device: str) -> None:
    """Raises InputError if bitsandbytes, or the GPU that it needs, is missing.

    kind: `pretrained_model.quantize`. device: as torch names it.
    """
    if kind == "nf4" and not device.startswith("cuda"):
        raise InputError(f"pretrained_model.quantize: nf4 needs a CUDA GPU, and this run is on {device}: use int8.")
    if kind == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("pretrained_model.quantize: nf4 needs bitsandbytes: install it, or use int8.")


def quantize(denoiser: nn.Module, kind: str, device: str, dtype: torch.dtype, part: str) -> None:
    """Replaces the linear layers whose paths contain `part`, under their names, by quantised ones on `device`.

    They are moved, and converted to `dtype`, one by one, so that the device never holds all original weights. The rest of
    the denoiser is not moved.
    """
    if kind == "none":
        return
    # a list of modules instead of names would keep all original weights in memory until the end
    for name in quantizable(denoiser, part):
        parent, _, child = name.rpartition(".")
        linear = denoiser.get_submodule(name)
        linear.name_or_path = f"{getattr(denoiser, 'name_or_path', '') or 'the model'}: {name}"  # for errors of `place`
        place(linear, device, dtype)
        layer = _nf4(linear, device) if kind == "nf4" else ByteLinear(linear, BYTE[kind])
        setattr(denoiser.get_submodule(parent), child, layer)


def quantizable(denoiser: nn.Module, part: str) -> list[str]:
    """Paths of the linear layers that `quantize` replaces."""
    return [n for n, m in denoiser.named_modules() if type(m) is nn.Linear and part in f".{n}"]


class ByteLinear(nn.Linear):
    """Linear layer with float8 e4m3 (Micikevicius et al. 2022, arXiv:2209.05433) or int8 weights, one step per output.

    weight [out, in] in `dtype`, step [out, 1] in the original dtype; they stand for weight · step, which `unpack` computes:
    `unpacked`, or a faster equal of it. bitsandbytes' int8
    layers are not used: they also round their input, and keep it for the backward pass, which gradient checkpointing
    avoids.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        whole = not dtype.is_floating_point
        largest = torch.iinfo(dtype).max if whole else torch.finfo(dtype).max
        step = (weight.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / largest).to(weight.dtype)
        stored = (weight.float() / step.float()).clamp(-largest, largest)
        self.weight = nn.Parameter((stored.round() if whole else stored).to(dtype), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("step", step)

        self.unpack: Unpack = unpacked

    def forward(self, x: Tensor) -> Tensor:
        return _ByteLinearFunction.apply(x, self.weight, self.step, self.bias, self.unpack)


class _ByteLinearFunction(torch.autograd.Function):
    """x [B, …, in] → x·Wᵀ + b [B, …, out], where W is weight [out, in] · step [out, 1].

    Keeps the quantised weight for the backward pass, and nothing else.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, step: Tensor, bias: Tensor | None, unpack: Unpack) -> Tensor:
        ctx.save_for_backward(weight, step)
        ctx.dtype, ctx.unpack = x.dtype, unpack
        return F.linear(x, unpack(weight, step, x.dtype), bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        # under autocast, the gradient's dtype is not x's
        grad_x = (grad @ ctx.unpack(*ctx.saved_tensors, grad.dtype)).to(ctx.dtype)
        return grad_x, None, None, None, None


def unpacked(weight: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """weight [out, in] · step [out, 1] in `dtype`."""
    return weight.to(dtype) * step.to(dtype)


def _nf4(linear: nn.Linear, device: str) -> nn.Module:
    """QLoRA's 4-bit layer (Dettmers et al. 2023, arXiv:2305.14314). Moving it quantises its weight."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(1, 1, quant_type="nf4", compute_dtype=linear.weight.dtype)
    layer.weight = Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
    layer.in_features, layer.out_features, layer.bias = linear.in_features, linear.out_features, linear.bias
    return layer.to(device)
