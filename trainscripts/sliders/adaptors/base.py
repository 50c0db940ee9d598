"""The contract of an adaptor: one algorithm on one frozen layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sliders.adaptors.gradient_sink import GradientSink

Joint = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # x [B, …], strength [B] or [1] → the output of each layer


class Adaptor(nn.Module, ABC):
    """A trainable addition to the output of a frozen layer, linear in its strength, which is multiplier · gain.

    A subclass sets `alpha` and `gain`, which is alpha / rank. All its weights are float32 parameters, because most
    updates at a slider's learning rate would round to nothing in bfloat16. It reads them with `weight`, in the dtype of
    the activations. Weights are 2-D, or 4-D for convolutions.
    """

    alpha: float
    gain: float

    @abstractmethod
    def __init__(self, base: nn.Module, rank: int, alpha: float, generator: torch.Generator | None = None):
        """base: a Linear or Conv2d, which is not changed. Initially the adaptor must add nothing."""
        super().__init__()
        self._base = (base,)  # in a tuple, because a module would be registered as ours
        self._copies: dict[str, Tensor] = {}
        self.sink: GradientSink | None = None

    @abstractmethod
    def forward(self, x: Tensor, strength: Tensor) -> Tensor:
        """Returns what is added to the layer's output for x [B, …], in x's dtype. strength: [B] or [1] (all rows)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Returns {part of a file key: tensor}, by the names that web UIs know."""

    @abstractmethod
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Loads what `tensors` returned. If the file's alpha differs from this adaptor's, the effect stays the same."""

    @property
    def base(self) -> nn.Module:
        return self._base[0]

    def use_buffers(self, copies: dict[str, Tensor], sink: GradientSink) -> None:
        """Computes with {parameter name: copy} instead of the parameters. The caller keeps the copies up to date.

        A subclass may put gradients into `sink` and return None for them to autograd.
        """
        self._copies, self.sink = copies, sink

    def weight(self, name: str, like: Tensor) -> Tensor:
        """Returns the parameter `name`, or its copy, in the dtype of `like`."""
        return self._copies.get(name, getattr(self, name)).to(like.dtype)

    def adapted(self, base_forward: Callable[[Tensor], Tensor], x: Tensor, strength: Tensor) -> Tensor:
        """Returns the adapted layer's output. A subclass may override it to need fewer passes over memory.

        base_forward: the layer's `forward` without this adaptor.
        """
        return base_forward(x) + self(x, strength)

    @classmethod
    def join(cls, adaptors: Sequence["Adaptor"]) -> Joint | None:
        """Returns a function that computes adapted layers with the same x at once, or None if they cannot be joined.

        Joined adaptors have the same gain. By default, none are joined.
        """
        return None
