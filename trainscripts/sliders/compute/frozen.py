"""Products with frozen layers, plain or quantised, without autograd: for functions with a backward of their own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.compute.neighbours import make_neighbours, stacked
from sliders.compute.quantization import ALIGNED, ByteLinear, byte_gradient, byte_product, unpacked
from sliders.compute.scaled_sum import beside_scaled, scale

UNPACKED = 16384  # rows of quantised weights that are unpacked at once: 64 MB for SDXL's prompts


class Frozen(ABC):
    """n frozen layers of one kind and size with one input, whose outputs are computed side by side."""

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers = tuple(layers)

    @property
    def bias(self) -> Tensor | None:
        biases = [layer.bias for layer in self.layers]
        return None if biases[0] is None else stacked(biases)

    def make_room(self, rows: int) -> Tensor | None:
        """Moves the weights to where there is room for so many rows below them, and returns that room.

        It must hold the `down` of `forward_with`, which then is one kernel. None, and nothing is moved, if the layers
        cannot have it.
        """
        return None

    @abstractmethod
    def forward_with(self, x: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the layers' output for x, and that of a layer with the weight `down` [r, in, …] and no bias.

        Both have x's dtype, and may be parts of one tensor. If the third result is not None, it is the bias, and is yet
        to be added.
        """


class FrozenProduct(Frozen):
    """Of linear layers: x [B, …, in] → [B, …, n · out].

    One kernel computes them if `join` has moved their weights next to each other.
    """

    @abstractmethod
    def join(self) -> None:
        """Moves the layers' weights next to each other in memory. Their values stay."""

    @abstractmethod
    def backward(self, grad: Tensor) -> Tensor:
        """grad [B, …, n · out] → grad·W, the gradient of x."""


class PlainWeights(Frozen):
    """Of layers that are not quantised."""

    CHANNELS: ClassVar[int]  # dimension of outputs
    ALIGNED: ClassVar[int]  # outputs with room lie in rows of a multiple of so many values
    _whole: tuple[Tensor, Tensor | None] | None = None  # weights with room below them, and bias

    def make_room(self, rows: int) -> Tensor | None:
        weights = [layer.weight for layer in self.layers]
        size = sum(weight.numel() * weight.element_size() for weight in weights)
        if weights[0].untyped_storage().nbytes() > 2 * size:  # shared with other layers, so moving would free nothing
            return None
        outputs = sum(len(weight) for weight in weights)
        padded = rows + -(outputs + rows) % self.ALIGNED
        bias = None if self.bias is None else torch.cat([self.bias.detach(), self.bias.new_zeros(padded)])
        whole = make_neighbours(weights, room=padded)
        self._whole = whole, bias
        return whole[-padded:][:rows]

    @property
    def _weight(self) -> Tensor:
        return stacked([layer.weight for layer in self.layers])

    @abstractmethod
    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def _adds_apart(self, x: Tensor) -> bool:
        """Whether a bias would take a kernel of its own."""
        return False

    def forward_with(self, x: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        apart = self._adds_apart(x)
        if self._whole is None:
            out = self._multiply(x, self._weight, None if apart else self.bias)
            return out, self._multiply(x, down, None), self.bias if apart else None
        weight, bias = self._whole
        both = self._multiply(x, weight, None if apart else bias)
        width = sum(len(layer.weight) for layer in self.layers)
        out, narrow = both.narrow(self.CHANNELS, 0, width), both.narrow(self.CHANNELS, width, len(down))
        return out, narrow, self.bias if apart else None


class PlainProduct(PlainWeights, FrozenProduct):
    """Of `nn.Linear`."""

    CHANNELS = -1
    ALIGNED = ALIGNED

    def join(self) -> None:
        make_neighbours([layer.weight for layer in self.layers])

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def backward(self, grad: Tensor) -> Tensor:
        return grad @ self._weight


class PlainConvolution(PlainWeights):
    """Of one `nn.Conv2d`: x [B, in, h, w] → [B, out, h', w']."""

    CHANNELS = 1
    ALIGNED = 64  # cuDNN's choice of kernels for other widths takes a third longer

    @property
    def geometry(self) -> tuple:
        """(stride, padding, dilation), as F.conv2d takes them."""
        layer = self.layers[0]
        return layer.stride, layer.padding, layer.dilation

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, *self.geometry)

    def _adds_apart(self, x: Tensor) -> bool:
        return x.is_cuda

    def joint_gradient(self, grad: Tensor, narrow: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """What `backward_with` reads: the gradient of both results of `forward_with`, and that of the second alone.

        A row per pixel: grad [m, out] of the first, narrow [m, r] of the second, yet to be multiplied by strength [B].
        """
        if self._whole is None:
            return grad, scale(narrow[None], strength)[0]
        return beside_scaled(grad, narrow, strength, len(self._whole[0]))

    def backward_with(self, both: Tensor, narrow: Tensor, down: Tensor, x: Tensor) -> Tensor:
        """The gradient of x. both, narrow: what `joint_gradient` returns, as images."""
        if self._whole is not None:
            return self._gradient(both, x, self._whole[0])
        return self._gradient(both, x, self._weight).add_(self._gradient(narrow, x, down))

    def _gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return convolution_backward(grad, x, weight, self.geometry, (True, False))[0]


class ByteProduct(FrozenProduct):
    """Of `ByteLinear`."""

    def join(self) -> None:
        make_neighbours([layer.weight for layer in self.layers])
        make_neighbours([layer.step for layer in self.layers])

    @property
    def _weight(self) -> tuple[Tensor, Tensor]:
        return stacked([layer.weight for layer in self.layers]), stacked([layer.step for layer in self.layers])

    def forward_with(self, x: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        weight, step = self._weight
        both = F.linear(x, unpacked(weight, step, x.dtype, below=down))
        return both.narrow(-1, 0, len(weight)), both.narrow(-1, len(weight), len(down)), self.bias

    def backward(self, grad: Tensor) -> Tensor:
        return byte_gradient(grad, *self._weight)


PRODUCTS = {nn.Linear: PlainProduct, ByteLinear: ByteProduct}


def frozen_product(layers: Sequence[nn.Module]) -> FrozenProduct | None:
    """The product of linear layers of one kind and size, or None for others and for layers whose `forward` is shadowed."""
    return None if any("forward" in layer.__dict__ for layer in layers) else _product(layers)


def frozen_layer(layer: nn.Module) -> Frozen | None:
    """A linear layer or a convolution, or None for other kinds and if its `forward` is shadowed."""
    if type(layer) is nn.Conv2d and "forward" not in layer.__dict__:
        return PlainConvolution([layer])
    return frozen_product([layer])


def joint_product(products: Sequence[Frozen]) -> FrozenProduct | None:
    """The products, which may be shadowed by now, as one. None if their layers are of different kinds or sizes."""
    return _product([layer for product in products for layer in product.layers])


def side_by_side(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """Linear layers of any sizes and one input: x [B, …, in] → their outputs [B, …, Σ out].

    By one product, or a few if they are quantised. Moves their weights next to each other. None if they are of several
    kinds, have biases, or are of a kind of which that is impossible.
    """
    kinds = {(type(layer), layer.bias is None) for layer in layers}
    if kinds == {(nn.Linear, True)}:
        return partial(F.linear, weight=make_neighbours([layer.weight for layer in layers]))
    if kinds == {(ByteLinear, True)}:
        weight, step = (make_neighbours([getattr(layer, name) for layer in layers]) for name in ("weight", "step"))
        return partial(_byte_products, weights=weight.split(UNPACKED), steps=step.split(UNPACKED))
    return None


def _byte_products(x: Tensor, weights: Sequence[Tensor], steps: Sequence[Tensor]) -> Tensor:
    return torch.cat([byte_product(x, *part, None) for part in zip(weights, steps, strict=True)], -1)


def _product(layers: Sequence[nn.Module]) -> FrozenProduct | None:
    kinds = {(type(layer), layer.weight.shape, layer.bias is None) for layer in layers}
    kind = PRODUCTS.get(type(layers[0]))
    return kind(layers) if kind is not None and len(kinds) == 1 else None


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: tuple[bool, bool]) -> tuple:
    """(gradient of x, gradient of the weight), those that are wanted. geometry: (stride, padding, dilation)."""
    stride, padding, dilation = geometry
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], 1, [*wanted, False]
    )
