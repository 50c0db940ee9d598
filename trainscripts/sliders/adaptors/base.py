"""What every algorithm has in common: float32 weights, and copies of them in the dtype that the model computes in."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

Joint = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # x [B, …], scale [B] or [1] → what each layer makes of it


class Adaptor(nn.Module):
    """What is hung on one frozen layer. Weights are float32 parameters: in bfloat16 most updates at a slider's learning
    rates round to nothing. They are computed with in the activation's dtype. `gain` is alpha / rank."""

    gain: float

    def __init__(self, base: nn.Module):
        super().__init__()
        self._base = (base,)  # a tuple, so that the frozen layer is not registered as ours
        self._copies: dict[str, Tensor] = {}

    @property
    def base(self) -> nn.Module:
        return self._base[0]

    def use_copies(self, copies: dict[str, Tensor]) -> None:
        """{parameter name: tensor} to compute with instead of the parameters. Who sets them keeps them up to date."""
        self._copies = copies

    def weight(self, name: str, like: Tensor) -> Tensor:
        """A parameter, or its copy, in the dtype of `like`."""
        return self._copies.get(name, getattr(self, name)).to(like.dtype)

    def adapted(self, base_forward: Callable[[Tensor], Tensor], x: Tensor, scale: Tensor) -> Tensor:
        """The layer's output with this adaptor's share. x [B, …]; scale [B] or [1], multiplier × gain → [B, …] in x's dtype."""
        return base_forward(x) + self(x, scale)

    @classmethod
    def join(cls, adaptors: Sequence["Adaptor"]) -> Joint | None:
        """What computes the layers of several adaptors of this class, all fed the same x and of one gain, at once; None:
        one by one."""
        return None
