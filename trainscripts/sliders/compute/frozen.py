"""Products with frozen linear layers, plain or quantised, without autograd: for functions with a backward of their own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sliders.compute.neighbours import make_neighbours, stacked
from sliders.compute.quantization import ByteLinear, byte_gradient, byte_product


class FrozenProduct(ABC):
    """n frozen layers with one input and equal sizes: x [B, …, in] → [B, …, n · out], their outputs side by side.

    One kernel computes them if `join` has moved their weights next to each other.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        self.layers = tuple(layers)

    @property
    def bias(self) -> Tensor | None:
        biases = [layer.bias for layer in self.layers]
        return None if biases[0] is None else stacked(biases)

    @abstractmethod
    def join(self) -> None:
        """Moves the layers' weights next to each other in memory. Their values stay."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b, in x's dtype."""

    @abstractmethod
    def backward(self, grad: Tensor) -> Tensor:
        """grad [B, …, n · out] → grad·W, the gradient of x."""


class PlainProduct(FrozenProduct):
    """Of `nn.Linear`."""

    def join(self) -> None:
        make_neighbours([layer.weight for layer in self.layers])

    @property
    def _weight(self) -> Tensor:
        return stacked([layer.weight for layer in self.layers])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self.bias)

    def backward(self, grad: Tensor) -> Tensor:
        return grad @ self._weight


class ByteProduct(FrozenProduct):
    """Of `ByteLinear`."""

    def join(self) -> None:
        make_neighbours([layer.weight for layer in self.layers])
        make_neighbours([layer.step for layer in self.layers])

    @property
    def _weight(self) -> tuple[Tensor, Tensor]:
        return stacked([layer.weight for layer in self.layers]), stacked([layer.step for layer in self.layers])

    def forward(self, x: Tensor) -> Tensor:
        return byte_product(x, *self._weight, self.bias)

    def backward(self, grad: Tensor) -> Tensor:
        return byte_gradient(grad, *self._weight)


PRODUCTS = {nn.Linear: PlainProduct, ByteLinear: ByteProduct}


def frozen_product(layers: Sequence[nn.Module]) -> FrozenProduct | None:
    """The product of layers of one kind and size, or None for other kinds and for layers whose `forward` is shadowed."""
    return None if any("forward" in layer.__dict__ for layer in layers) else _product(layers)


def joint_product(products: Sequence[FrozenProduct]) -> FrozenProduct | None:
    """The products, which may be shadowed by now, as one. None if their layers are of different kinds or sizes."""
    return _product([layer for product in products for layer in product.layers])


def _product(layers: Sequence[nn.Module]) -> FrozenProduct | None:
    kinds = {(type(layer), layer.weight.shape, layer.bias is None) for layer in layers}
    kind = PRODUCTS.get(type(layers[0]))
    return kind(layers) if kind is not None and len(kinds) == 1 else None
