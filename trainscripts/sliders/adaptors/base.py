"""The contract of an adaptor: one algorithm on one frozen layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

ALPHA = "alpha"  # part of a file key


class Adaptor(nn.Module, ABC):
    """A trainable addition to a frozen layer, whose effect is linear in its scaling, multiplier · gain.

    All its weights are float32 parameters, because most updates at a slider's learning rate would round to nothing in
    bfloat16. It reads them with `weight`, in the dtype of the activations. Weights are 2-D, or 4-D for convolutions.

    gain: alpha / rank, or 1 if there is no rank.
    """

    PARTS: ClassVar[dict[str, str]]  # {part of a file key, as LyCORIS and kohya's scripts write it: parameter}
    SCALED: ClassVar[tuple[str, ...]]  # parts that are to be multiplied by c to make the effect c times as strong
    HAS_ALPHA: ClassVar[bool] = True  # whether files contain it

    @abstractmethod
    def __init__(self, base: nn.Module, rank: int | None, alpha: float, generator: torch.Generator | None = None):
        """base: a Linear or Conv2d, which is not changed. Initially the adaptor must add nothing."""
        super().__init__()
        self._base = (base,)  # in a tuple, because a module would be registered as ours
        self._copies: dict[str, Tensor] = {}
        self.rank, self.alpha = rank, alpha
        self.gain = 1.0 if rank is None else alpha / rank
        # stride, padding and dilation of a convolution, as F.conv2d takes them
        self.geometry = (base.stride, base.padding, base.dilation) if isinstance(base, nn.Conv2d) else None

    def forward(self, x: Tensor, scaling: Tensor) -> Tensor:
        """Returns what is added to the layer's output for x [B, …], in x's dtype. scaling: [B] or [1] (all rows), float32.

        A subclass defines it, unless its `adapted` does without.
        """
        raise NotImplementedError

    def adapted(self, base_forward: Callable[[Tensor], Tensor], x: Tensor, scaling: Tensor) -> Tensor:
        """Returns the adapted layer's output. A subclass may override it to need fewer products.

        base_forward: the layer's `forward` without this adaptor.
        """
        return base_forward(x) + self(x, scaling)

    @abstractmethod
    def difference(self) -> Tensor:
        """ΔW [out, in], or [out, in, k, k] for a convolution, float32, at multiplier 1, gain included."""

    @property
    def base(self) -> nn.Module:
        return self._base[0]

    def compute_with(self, copies: dict[str, Tensor]) -> None:
        """Computes with {parameter name: copy} instead of those parameters. The caller keeps the copies up to date."""
        self._copies = copies

    def weight(self, name: str, like: Tensor) -> Tensor:
        """Returns the parameter `name`, or its copy, in the dtype of `like`."""
        return self._copies.get(name, getattr(self, name)).to(like.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Returns {part of a file key: tensor}, as web UIs read them."""
        weights = dict(self.named_parameters())
        found = {part: weights[name].detach() for part, name in self.PARTS.items() if name in weights}
        if self.HAS_ALPHA:
            found[ALPHA] = torch.tensor(self.alpha, dtype=torch.float32)
        return found

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Loads what `tensors` returned. If the file's alpha differs from this adaptor's, the effect stays the same."""
        if self.rank is not None:
            tensors = self.scaled(tensors, float(tensors[ALPHA]) / self.alpha)
        weights = dict(self.named_parameters())
        for part, name in self.PARTS.items():
            if name in weights:
                weights[name].copy_(tensors[part])

    def accepts(self, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Whether `load_tensors` can load tensors of these shapes, {part: shape}."""
        return shapes == {part: tensor.shape for part, tensor in self.tensors().items()}

    @classmethod
    def holding(cls, base: nn.Module, tensors: dict[str, Tensor]) -> Self:
        """An adaptor of `base` with the tensors of any other, {part: tensor} as `tensors` returns them, of any rank and gain."""
        with torch.device("meta"):
            adaptor = cls(base, 1, float(tensors.get(ALPHA, 1.0)))
        adaptor._hold(tensors)
        return adaptor

    def _hold(self, tensors: dict[str, Tensor]) -> None:
        for name in dict(self.named_parameters()):
            delattr(self, name)
        for part, name in self.PARTS.items():
            if part in tensors:
                setattr(self, name, nn.Parameter(tensors[part].float()))
        self.rank = self.rank_of(tensors)
        self.gain = 1.0 if self.rank is None else self.alpha / self.rank

    @classmethod
    def rank_of(cls, tensors: dict[str, Tensor]) -> int | None:
        """By which the gain divides alpha; None if the gain is 1 whatever alpha."""
        return cls.settings_of([tensors]).get("rank")

    @classmethod
    def for_files(cls, tensors: dict[str, Tensor], base: nn.Module) -> dict[str, Tensor]:
        """What `tensors` returned for an adaptor of `base`, as slider files have it: the effect is the same."""
        return tensors

    @classmethod
    def scaled(cls, tensors: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
        """The tensors of an adaptor whose effect is `factor` times as strong."""
        return {part: tensor * factor if part in cls.SCALED else tensor for part, tensor in tensors.items()}

    @classmethod
    def is_zero(cls, tensors: dict[str, Tensor]) -> bool:
        """Whether an adaptor with these tensors adds nothing at any scaling. By default, all of them are factors."""
        return not all(tensor.float().any() for tensor in tensors.values())

    @classmethod
    def is_complete(cls, tensors: dict[str, Tensor]) -> bool:
        """Whether a layer's parts are those of this algorithm, with or without alpha."""
        return tensors.keys() - {ALPHA} == cls.PARTS.keys()

    @classmethod
    def settings_of(cls, layers: Sequence[dict[str, Tensor]]) -> dict[str, int]:
        """The settings of `network` besides alpha that give adaptors with these tensors."""
        return {}


def shape_of(base: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """(out, in), or (out, in, k, k) of a convolution. A quantised layer's weight may have another shape."""
    if isinstance(base, nn.Conv2d):
        return base.out_channels, base.in_channels, *base.kernel_size
    return base.out_features, base.in_features


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float32))


def per_row(x: Tensor, scaling: Tensor) -> Tensor:
    """x [B, …] · scaling [B] or [1], float32, rounded once, to x's dtype."""
    return (x * scaling.view(-1, *(1,) * (x.ndim - 1))).to(x.dtype)


def with_gain_folded(tensors: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The tensors of an adaptor with the same effect whose alpha is `rank`: its gain is in the weights.

    LyCORIS applies the gain of a LoHa or LoKr twice when it merges one. Parts must be factors of a product. A gain below
    1 goes into the one with the largest values, another into the one with the smallest, so that they fit float16.
    """
    gain = float(tensors[ALPHA]) / rank
    if gain == 1:
        return tensors
    choose = max if gain < 1 else min
    part = choose(sorted(tensors.keys() - {ALPHA}), key=lambda part: tensors[part].abs().max().item())
    folded = (tensors[part].float() * gain).to(tensors[part].dtype)
    return {**tensors, part: folded, ALPHA: torch.full_like(tensors[ALPHA], rank)}


def needs_plain_operations(x: Tensor) -> bool:
    """The compiler cannot optimise our autograd functions, and autocast cannot cast the products in them."""
    device = x.device.type
    return torch.compiler.is_compiling() or (
        torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    )
