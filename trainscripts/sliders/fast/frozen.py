"""Products with frozen layers and the downs of their LoRAs, without autograd: for functions with a backward of their own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.compute.patches import is_patched
from sliders.compute.quantization import ByteLinear
from sliders.fast.joint import JointTensor
from sliders.fast.scaled_sum import beside_scaled
from sliders.fast.unpacking import ALIGNED, byte_gradient, byte_product, unpacked

UNPACKED = 16384  # rows of quantised weights that are unpacked at once: 64 MB for SDXL's prompts
CONVOLUTION_ALIGNED = 64  # output channels; cuDNN's choice of kernels for other widths takes a third longer


class Frozen(ABC):
    """n frozen layers of one kind and size with one input, and the downs of their LoRAs, computed side by side.

    The layers' weights become views of one tensor.

    downs [r, in, …]: in the dtype of the activations, all of them below each other. copies: [(copy, original)] of
    them that `forward` reads, which the caller keeps up to date.
    """

    def __init__(self, layers: Sequence[nn.Module], downs: Tensor):
        self.layers, self.downs = tuple(layers), downs
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.outputs = sum(len(layer.weight) for layer in layers)
        self.bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the layers' outputs for x, and that of a layer with the weight `downs` and no bias.

        They are parts of one tensor, in x's dtype. If the third result is not None, it is the bias, and is yet to be
        added.
        """


class FrozenProduct(Frozen):
    """Of linear layers: x [B, …, in] → [B, …, n · out]."""

    @abstractmethod
    def backward(self, grad: Tensor) -> Tensor:
        """grad [B, …, n · out] → grad·W, the gradient of x."""


class PlainProduct(FrozenProduct):
    """Of `nn.Linear`: one product with all weights, below which there are copies of the downs."""

    def __init__(self, layers: Sequence[nn.Module], downs: Tensor):
        super().__init__(layers, downs)
        self._joint, self._whole_bias = _with_room(self, ALIGNED)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        both = F.linear(x, self._joint.whole, self._whole_bias)
        return both.narrow(-1, 0, self.outputs), both.narrow(-1, self.outputs, len(self.downs)), None

    def backward(self, grad: Tensor) -> Tensor:
        return grad @ self._joint.own


class ByteProduct(FrozenProduct):
    """Of `ByteLinear`: one product with all weights, below which the downs are put as they are unpacked."""

    def __init__(self, layers: Sequence[nn.Module], downs: Tensor):
        super().__init__(layers, downs)
        self._weight = JointTensor([layer.weight for layer in layers]).whole
        self._step = JointTensor([layer.step for layer in layers]).whole

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        both = F.linear(x, unpacked(self._weight, self._step, x.dtype, below=self.downs))
        return both.narrow(-1, 0, self.outputs), both.narrow(-1, self.outputs, len(self.downs)), self.bias

    def backward(self, grad: Tensor) -> Tensor:
        return byte_gradient(grad, self._weight, self._step)


class PlainConvolution(Frozen):
    """Of one `nn.Conv2d`: x [B, in, h, w] → [B, out, h', w']."""

    def __init__(self, layers: Sequence[nn.Module], downs: Tensor):
        super().__init__(layers, downs)
        layer = layers[0]
        self.geometry = (layer.stride, layer.padding, layer.dilation)  # as F.conv2d takes them
        self._joint, self._whole_bias = _with_room(self, CONVOLUTION_ALIGNED)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        apart = x.is_cuda  # where a bias takes a kernel of its own
        both = F.conv2d(x, self._joint.whole, None if apart else self._whole_bias, *self.geometry)
        own, projected = both.narrow(1, 0, self.outputs), both.narrow(1, self.outputs, len(self.downs))
        return own, projected, self.bias if apart else None

    def joint_gradient(self, grad: Tensor, projected: Tensor, scaling: Tensor) -> tuple[Tensor, Tensor]:
        """What `backward` reads: the gradient of both results of `forward` as one, and that of the second alone.

        A row per pixel: grad [m, out] of the first, projected [m, r] of the second, yet to be multiplied by scaling [B].
        """
        return beside_scaled(grad, projected, scaling, len(self._joint.whole))

    def backward(self, both: Tensor, x: Tensor) -> Tensor:
        """The gradient of x. both: the first that `joint_gradient` returns, as an image."""
        return convolution_backward(both, x, self._joint.whole, self.geometry, (True, False))[0]


def _with_room(frozen: Frozen, multiple: int) -> tuple[JointTensor, Tensor | None]:
    """The weights with room for the downs below them, and the bias with zeros for it.

    multiple: of so many rows in all.
    """
    rows = len(frozen.downs)
    padded = rows + -(frozen.outputs + rows) % multiple
    joint = JointTensor([layer.weight for layer in frozen.layers], room=padded)
    frozen.copies.append((joint.room[:rows], frozen.downs))
    bias = frozen.bias
    return joint, None if bias is None else torch.cat([bias, bias.new_zeros(padded)])


KINDS: dict[type[nn.Module], type[Frozen]] = {
    nn.Linear: PlainProduct, ByteLinear: ByteProduct, nn.Conv2d: PlainConvolution
}  # fmt: skip


def frozen_kind(layers: Sequence[nn.Module]) -> type[Frozen] | None:
    """Which `Frozen` computes layers with one input at once. None if they are of different kinds or sizes, or of another kind."""
    kinds = {(type(layer), layer.weight.shape, layer.bias is None) for layer in layers}
    return KINDS.get(type(layers[0])) if len(kinds) == 1 else None


def side_by_side(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """Linear layers of any sizes and one input: x [B, …, in] → their outputs [B, …, Σ out].

    By one product, or a few if they are quantised. Their weights become views of one tensor. None if they are of several
    kinds, have biases, are of another kind, or are patched.
    """
    kinds = {(type(layer), layer.bias is None) for layer in layers}
    if any(map(is_patched, layers)):
        return None
    if kinds == {(nn.Linear, True)}:
        return partial(F.linear, weight=JointTensor([layer.weight for layer in layers]).whole)
    if kinds == {(ByteLinear, True)}:
        weight, step = (JointTensor([getattr(layer, name) for layer in layers]).whole for name in ("weight", "step"))
        return partial(_byte_products, weights=weight.split(UNPACKED), steps=step.split(UNPACKED))
    return None


def _byte_products(x: Tensor, weights: Sequence[Tensor], steps: Sequence[Tensor]) -> Tensor:
    return torch.cat([byte_product(x, *part, None) for part in zip(weights, steps, strict=True)], -1)


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: tuple[bool, bool]) -> tuple:
    """(gradient of x, gradient of the weight), those that are wanted. geometry: (stride, padding, dilation)."""
    stride, padding, dilation = geometry
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], 1, [*wanted, False]
    )
