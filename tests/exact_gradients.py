"""LoRA layers in bfloat16 on inputs that make all products before the gradients exact."""

from types import SimpleNamespace

import torch
from sliders.adaptors.lora import LoRA
from sliders.fast.frozen import frozen_kind
from sliders.fast.low_rank import FusedLoRA
from sliders.fast.weights import FastWeights
from torch import nn
from torch.nn import functional as F

RANK = 4
LAYERS = {  # convolutions with a stride have no Winograd kernels, whose transforms would round
    "linear": lambda: [nn.Linear(64, 48)],
    "joined": lambda: [nn.Linear(64, 48) for _ in range(3)],
    "convolution": lambda: [nn.Conv2d(16, 24, 3, stride=2, padding=1)],
}


def integers(*shape, generator):
    return torch.randint(-1, 2, shape, generator=generator, dtype=torch.float64)


def gradients_of_integers(kind, device, uses=1):
    """[(name, gradient, exact gradient)] of all weights after the model has used the layers so many times. float64.

    Inputs, weights and upstream gradients are -1, 0 or 1. So what is multiplied consists of integers up to 256, which
    bfloat16 holds.
    """
    generator = torch.Generator().manual_seed(0)
    layers = [layer.requires_grad_(False) for layer in LAYERS[kind]()]
    adaptors = [LoRA(layer, RANK, alpha=RANK) for layer in layers]
    weights = [[integers(*p.shape, generator=generator).requires_grad_() for p in a.parameters()] for a in adaptors]
    x = integers(2, *((16, 40, 40) if kind == "convolution" else (3000, 64)), generator=generator)
    for adaptor, drawn in zip(adaptors, weights, strict=True):
        adaptor.load_tensors(dict(zip(adaptor.PARTS, drawn, strict=True)) | {"alpha": torch.tensor(RANK)})
    upstream = []
    for adaptor, (down, up) in zip(adaptors, weights, strict=True):
        conv = adaptor.geometry
        out = F.conv2d(F.conv2d(x, down, None, *conv), up) if conv else x @ down.T @ up.T
        upstream.append(integers(*out.shape, generator=generator))
        out.backward(uses * upstream[-1])
    found = _flat_gradients(layers, adaptors, x, upstream, device, uses)
    names = [name for a in adaptors for name, _ in a.named_parameters()]
    exact = [weight.grad for drawn in weights for weight in drawn]
    return list(zip(names, found, exact, strict=True))


def _flat_gradients(layers, adaptors, x, upstream, device, uses):
    nn.ModuleList(layers).to(device, torch.bfloat16, memory_format=torch.channels_last)
    nn.ModuleList(adaptors).to(device)
    flat = FastWeights(SimpleNamespace(adaptors=adaptors), torch.bfloat16)
    fused = FusedLoRA.of(frozen_kind(layers), adaptors, flat)
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    x, *upstream = (t.to(device, torch.bfloat16, memory_format=layout) for t in (x, *upstream))
    one, outs = torch.ones(1, device=device), []
    for _ in range(uses):
        again = x.clone().requires_grad_()  # as inside a UNet
        outs += fused(again, one).chunk(len(layers), 1 if x.ndim == 4 else -1)
    torch.autograd.backward(outs, upstream * uses)
    flat.gather_gradients()
    parameters = [p for adaptor in adaptors for p in adaptor.parameters()]
    return [flat.master.grad.as_strided(p.shape, p.stride(), p.storage_offset()).double().cpu() for p in parameters]


def assert_float32_resolution(kind, device, uses=1):
    """The gradients are exact, and bfloat16 could not hold them. Kernels of a convolution's weight do round to it."""
    for name, found, exact in gradients_of_integers(kind, device, uses):
        if (kind, name) == ("convolution", "down"):
            assert (found - exact).norm() <= 0.01 * exact.norm()
        else:
            assert not torch.equal(exact.bfloat16().double(), exact)
            assert torch.equal(found, exact), name
