"""LoKr: a Kronecker product as the difference of a layer's weight (Yeh et al. 2024, LyCORIS, arXiv:2309.14859)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.adaptors.base import ALPHA, Adaptor, per_row, shape_of, with_gain_folded, zeros


class LoKr(Adaptor):
    """Adds scaling · (w1 ⊗ w2) · x to a layer's output, without computing the Kronecker product.

    w1 [l, m], w2 [k, n], or [k, n, kh, kw] for a convolution, with l · k = out and m · n = in. If that saves weights, w2
    is the product of w2_a [k, rank] and w2_b [rank, n], or [rank, n · kh · kw]. Else there is no rank and the gain is 1,
    whatever alpha: so LyCORIS and all web UIs have it.
    """

    PARTS: ClassVar = {"lokr_w1": "w1", "lokr_w2": "w2", "lokr_w2_a": "w2_a", "lokr_w2_b": "w2_b"}
    SCALED = ("lokr_w1",)

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
        factor: int | None = None,
    ):
        """factor: l and m are its divisors nearest to it. None: l · k and m · n as square as they can be."""
        out, into, *kernel = shape_of(base)
        (l, k), (m, n) = factorized(out, factor), factorized(into, factor)  # noqa: E741 - as in the docstring
        low_rank = rank < max(k, n) / 2
        super().__init__(base, rank if low_rank else None, alpha if low_rank else float(rank), generator)
        self.w1 = zeros(l, m)
        self.shape = (k, n, *kernel)
        nn.init.kaiming_uniform_(self.w1, a=math.sqrt(5), generator=generator)
        if low_rank:
            self.w2_a, self.w2_b = zeros(k, rank), zeros(rank, n * math.prod(kernel))
            nn.init.kaiming_uniform_(self.w2_a, a=math.sqrt(5), generator=generator)
        else:
            self.w2 = zeros(*self.shape)

    def forward(self, x: Tensor, scaling: Tensor) -> Tensor:
        w1, x = self.weight("w1", x), per_row(x, scaling)
        (l, m), (k, n) = w1.shape, self.shape[:2]  # noqa: E741
        w2 = self._second(x)
        if self.geometry is None:
            hidden = F.linear(x.unflatten(-1, (m, n)), w2)  # [B, …, m, k]
            return (w1 @ hidden).flatten(-2)
        rows, _, height, width = x.shape
        hidden = F.conv2d(x.reshape(rows * m, n, height, width), w2, None, *self.geometry)
        return (w1 @ hidden.reshape(rows, m, -1)).view(rows, l * k, *hidden.shape[2:])

    def _second(self, x: Tensor) -> Tensor:
        """w2, or w2_a · w2_b in its shape, in x's dtype."""
        if self.rank is None:
            return self.weight("w2", x)
        return (self.weight("w2_a", x) @ self.weight("w2_b", x)).view(self.shape)

    def difference(self) -> Tensor:
        product = torch.einsum("lm,kn...->lkmn...", self.w1, self._second(self.w1))
        return self.gain * product.flatten(0, 1).flatten(1, 2)

    def _hold(self, tensors: dict[str, Tensor]) -> None:
        super()._hold(tensors)
        (l, m), (out, into, *kernel) = self.w1.shape, shape_of(self.base)  # noqa: E741
        self.shape = (out // l, into // m, *kernel)

    @classmethod
    def rank_of(cls, tensors: dict[str, Tensor]) -> int | None:
        return None if "lokr_w2" in tensors else super().rank_of(tensors)

    @classmethod
    def is_zero(cls, tensors: dict[str, Tensor]) -> bool:
        return super().is_zero({part: t for part, t in tensors.items() if part != ALPHA or "lokr_w2" not in tensors})

    @classmethod
    def for_files(cls, tensors: dict[str, Tensor], base: nn.Module) -> dict[str, Tensor]:
        """Multiplies w2_a · w2_b where LyCORIS would not find w1's and w2's sizes again, and then fail on the whole file."""
        if "lokr_w2" in tensors:
            return tensors
        w1, w2_a, w2_b = (tensors[part] for part in ("lokr_w1", "lokr_w2_a", "lokr_w2_b"))
        folded = with_gain_folded(tensors, w2_a.shape[1])
        (l, m), (out, into, *kernel) = w1.shape, shape_of(base)  # noqa: E741
        if found_again((l, out // l), (m, into // m), math.prod(kernel)):
            return folded
        w2 = (folded["lokr_w2_a"].float() @ folded["lokr_w2_b"].float()).to(w2_b.dtype)
        return {
            "lokr_w1": folded["lokr_w1"],
            "lokr_w2": w2.view(out // l, into // m, *kernel),
            ALPHA: folded[ALPHA],
        }

    def accepts(self, shapes: dict[str, tuple[int, ...]]) -> bool:
        whole = {"lokr_w1": self.w1.shape, "lokr_w2": self.shape, ALPHA: ()}
        return super().accepts(shapes) or shapes == whole

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        if self.rank is not None and "lokr_w2" in tensors:  # multiplied by `for_files`
            self.rank, self.gain = None, 1.0
            self.w2 = zeros(*self.shape).to(self.w1.device)
            del self.w2_a, self.w2_b
        super().load_tensors(tensors)

    @classmethod
    def is_complete(cls, tensors: dict[str, Tensor]) -> bool:
        return tensors.keys() - {ALPHA} in ({"lokr_w1", "lokr_w2"}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"})

    @classmethod
    def settings_of(cls, layers: Sequence[dict[str, Tensor]]) -> dict[str, int]:
        ranks = [tensors["lokr_w2_b"].shape[0] for tensors in layers if "lokr_w2_b" in tensors]
        whole = [max(tensors["lokr_w2"].shape[:2]) for tensors in layers if "lokr_w2" in tensors]
        found = {"rank": max(ranks or whole)}
        second = ((t["lokr_w2"].shape[0] if "lokr_w2" in t else len(t["lokr_w2_a"])) for t in layers)
        splits = [(len(t["lokr_w1"]), k) for t, k in zip(layers, second, strict=True)]
        for factor in (None, *sorted({side for split in splits for side in split if side > 1})):
            if all(factorized(l * k, factor) == (l, k) for l, k in splits):  # noqa: E741
                return found if factor is None else {**found, "factor": factor}
        return found


def factorized(size: int, factor: int | None = None) -> tuple[int, int]:
    """(a, b) with a · b = size and a ≤ b, as LyCORIS finds them.

    One of them is `factor` if it divides size. Else a is as large as possible, but at most `factor`, if there is one.
    """
    if factor is not None and size % factor == 0:
        return tuple(sorted((factor, size // factor)))
    limit = min(math.isqrt(size), factor or size)
    smaller = next(divisor for divisor in range(limit, 0, -1) if size % divisor == 0)
    return smaller, size // smaller


def found_again(split_out: tuple[int, int], split_in: tuple[int, int], area: int) -> bool:
    """Whether LyCORIS finds (l, k) and (m, n) again from the shapes of w1, w2_a and w2_b, all that it looks at.

    It guesses a factor, for which it takes w2_b's n · kh · kw columns for n. area: kh · kw.
    """
    (l, k), (m, n) = split_out, split_in  # noqa: E741
    out, into, columns = l * k, m * n * area, n * area
    factor = None
    if (l, m) != (factorized(out)[0], factorized(into)[0]):
        sides = max(l, m), max(k, columns)
        shared = (s for s in sides if out % s == 0 == into % s and s in split_out and s in (m, columns))
        factor = next(shared, min(sides))
    return factorized(out, factor) == split_out and factorized(m * n, factor) == split_in
