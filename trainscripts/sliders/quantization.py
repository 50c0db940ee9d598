"""`pretrained_model.quantize`: the frozen UNet's linear layers in one byte or half a byte a weight, for small cards.

They hold nine tenths of SDXL's weights. Only storage shrinks: every product is still computed in the training precision.
"""

import importlib.util
import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.errors import InputError

FP8 = torch.float8_e4m3fn


def check_quantization(kind: str, device: str) -> None:
    """Raises InputError where bitsandbytes, or the GPU that it wants, is missing. `device`: as torch calls it."""
    if kind in ("int8", "nf4") and not device.startswith("cuda"):
        raise InputError(f"pretrained_model.quantize: {kind} needs a CUDA GPU, and this run is on {device}: use fp8.")
    if kind in ("int8", "nf4") and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"pretrained_model.quantize: {kind} needs bitsandbytes: install it, or use fp8.")


def quantize(unet: nn.Module, kind: str, device: str) -> None:
    """Put quantised layers in the places, and under the names, of the transformers' linear ones.

    Each moves to `device` by itself, so that the device never holds all of them as they were; the rest stays where it is.
    """
    if kind == "none":
        return
    make = {"fp8": _fp8, "int8": _int8, "nf4": _nf4}[kind]
    # Names alone: a list of the modules would keep each layer's old weight until the last.
    names = [n for n, m in unet.named_modules() if type(m) is nn.Linear and ".attentions." in f".{n}"]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, make(unet.get_submodule(name), device))


def _fp8(linear: nn.Linear, device: str) -> nn.Module:
    return Fp8Linear(linear.to(device))


class Fp8Linear(nn.Linear):
    """Weights as float8 e4m3 (Micikevicius et al. 2022, arXiv:2209.05433) with one scale for each output."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        scale = weight.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / torch.finfo(FP8).max
        self.weight = nn.Parameter((weight / scale).to(FP8), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scale", scale.to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return _Fp8Product.apply(x, self.weight, self.scale, self.bias)


class _Fp8Product(torch.autograd.Function):
    """x·Wᵀ + b that keeps the small weight for the way back, not the unpacked one."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.dtype = x.dtype
        return F.linear(x, weight.to(x.dtype) * scale, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        unpacked = weight.to(grad.dtype) * scale.to(grad.dtype)  # under autocast the gradient comes in another dtype
        return (grad @ unpacked).to(ctx.dtype), None, None, None


def _nf4(linear: nn.Linear, device: str) -> nn.Module:
    """QLoRA's four bits (Dettmers et al. 2023, arXiv:2305.14314)."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(1, 1, quant_type="nf4", compute_dtype=linear.weight.dtype)
    weight = Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
    return _filled(layer, linear, weight, device)


def _int8(linear: nn.Linear, device: str) -> nn.Module:
    """LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339), without its outliers: looking for them makes the GPU wait in
    every layer, and then no step can be a graph."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_tells_something)
    layer = Linear8bitLt(1, 1, has_fp16_weights=False, threshold=0.0)
    weight = Int8Params(linear.weight.detach().cpu(), requires_grad=False, has_fp16_weights=False)
    return _filled(layer, linear, weight, device)


def _tells_something(record: logging.LogRecord) -> bool:
    """bitsandbytes says in every call of every layer that it computes in float16."""
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


def _filled(layer: nn.Module, linear: nn.Linear, weight: nn.Parameter, device: str) -> nn.Module:
    """bitsandbytes quantises a weight when it is moved."""
    layer.in_features, layer.out_features, layer.bias = linear.in_features, linear.out_features, linear.bias
    layer.weight = weight
    return layer.to(device)
