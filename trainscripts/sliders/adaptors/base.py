"""What every algorithm has in common: float32 weights, and copies of them in the dtype that the model computes in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Joint = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # x [B, ...], strength [B] or [1] -> output of each layer


class Adaptor(nn.Module, ABC):
    """One algorithm on one frozen layer.

    Weights are float32 parameters: in bfloat16 most updates at a slider's learning rates round to nothing. They are
    cast to the activation's dtype where they are used. `gain` is alpha / rank; *strength* is multiplier x gain.
    """

    alpha: float
    gain: float

    @abstractmethod
    def __init__(self, base: nn.Module, rank: int, alpha: float, generator: torch.Generator | None = None):
        """base: a Linear or Conv2d, which stays unchanged. At the start the adaptor adds nothing."""
        super().__init__()
        self._base = (base,)  # a tuple, so that the frozen layer is not registered as ours
        self._copies: dict[str, Tensor] = {}

    @abstractmethod
    def forward(self, x: Tensor, strength: Tensor) -> Tensor:
        """What is added to the layer's output, linear in the strength. x [B, ...]; strength [B] or [1] -> x's dtype."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """{part of a file key: tensor}, by the names that web UIs know."""

    @abstractmethod
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` returned; strength is kept if the file's alpha differs from this adaptor's."""

    @property
    def base(self) -> nn.Module:
        return self._base[0]

    def use_copies(self, copies: dict[str, Tensor]) -> None:
        """{parameter name: tensor} to compute with instead of the parameters; the caller keeps them up to date."""
        self._copies = copies

    def weight(self, name: str, like: Tensor) -> Tensor:
        """A parameter, or its copy, in the dtype of `like`."""
        return self._copies.get(name, getattr(self, name)).to(like.dtype)

    def adapted(self, base_forward: Callable[[Tensor], Tensor], x: Tensor, strength: Tensor) -> Tensor:
        """The layer's output with this adaptor's share; override it where both can be computed in fewer passes."""
        return base_forward(x) + self(x, strength)

    @classmethod
    def join(cls, adaptors: Sequence["Adaptor"]) -> Joint | None:
        """Computes several layers that read the same x at once, where this algorithm can; None: one by one."""
        return None
