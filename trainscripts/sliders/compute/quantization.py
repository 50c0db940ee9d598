"""`pretrained_model.quantize`: the frozen UNet's linear layers in one byte or half a byte a weight, for small cards.

They hold nine tenths of SDXL's weights. Only storage shrinks: every product is still computed in the training precision.
"""

import importlib.util

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.system.errors import InputError

BYTE = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def check_quantization(kind: str, device: str) -> None:
    """Raises InputError where bitsandbytes, or the GPU that it wants, is missing. `device`: as torch calls it."""
    if kind == "nf4" and not device.startswith("cuda"):
        raise InputError(f"pretrained_model.quantize: nf4 needs a CUDA GPU, and this run is on {device}: use int8.")
    if kind == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("pretrained_model.quantize: nf4 needs bitsandbytes: install it, or use int8.")


def quantize(unet: nn.Module, kind: str, device: str) -> None:
    """Put quantised layers in the places, and under the names, of the transformers' linear ones.

    Each moves to `device` by itself, so that the device never holds all of them as they were; the rest stays where it is.
    """
    if kind == "none":
        return
    # Names alone: a list of the modules would keep each layer's old weight until the last.
    names = [n for n, m in unet.named_modules() if type(m) is nn.Linear and ".attentions." in f".{n}"]
    for name in names:
        parent, _, child = name.rpartition(".")
        linear = unet.get_submodule(name)
        layer = _nf4(linear, device) if kind == "nf4" else ByteLinear(linear.to(device), BYTE[kind])
        setattr(unet.get_submodule(parent), child, layer)


class ByteLinear(nn.Linear):
    """Weights as float8 e4m3 (Micikevicius et al. 2022, arXiv:2209.05433) or int8, with one step for each output.

    bitsandbytes' int8 layers are not used: they round their input as well, and keep it until their backward, which is
    what gradient checkpointing spares.
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

    def forward(self, x: Tensor) -> Tensor:
        return _ByteProduct.apply(x, self.weight, self.step, self.bias)


class _ByteProduct(torch.autograd.Function):
    """x·Wᵀ + b that keeps the small weight for the way back, not the unpacked one."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, step)
        ctx.dtype = x.dtype
        return F.linear(x, weight.to(x.dtype) * step, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, step = ctx.saved_tensors
        unpacked = weight.to(grad.dtype) * step.to(grad.dtype)  # under autocast the gradient comes in another dtype
        return (grad @ unpacked).to(ctx.dtype), None, None, None


def _nf4(linear: nn.Linear, device: str) -> nn.Module:
    """QLoRA's four bits (Dettmers et al. 2023, arXiv:2305.14314). bitsandbytes quantises a weight when it is moved."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(1, 1, quant_type="nf4", compute_dtype=linear.weight.dtype)
    layer.weight = Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
    layer.in_features, layer.out_features, layer.bias = linear.in_features, linear.out_features, linear.bias
    return layer.to(device)
