"""What adaptors share that compute the whole difference ΔW between the adapted and the frozen weight."""

from abc import abstractmethod

from torch import Tensor
from torch.nn import functional as F

from sliders.adaptors.base import Adaptor, per_row


class DeltaAdaptor(Adaptor):
    """Adds scaling · ΔW · x to a layer's output. It costs another product of the layer's own size."""

    @abstractmethod
    def delta(self, x: Tensor) -> Tensor:
        """Returns ΔW [out, in], or [out, in, k, k] for a convolution, in x's dtype, at scaling 1."""

    def difference(self) -> Tensor:
        return self.gain * self.delta(next(self.parameters()))

    def forward(self, x: Tensor, scaling: Tensor) -> Tensor:
        delta = self.delta(x)
        out = F.conv2d(x, delta, None, *self.geometry) if self.geometry else F.linear(x, delta)
        return per_row(out, scaling)
