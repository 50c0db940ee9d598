"""LoRA (Hu et al. 2021, arXiv:2106.09685) for linear layers and convolutions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRA(nn.Module):
    """ΔW = gain · up · down of one layer, gain = alpha / rank, multiplied per row of the batch.

    Weights are float32 (in bfloat16 most updates at a slider's learning rates round to nothing) and are cast to the
    activation's dtype where they are used. For a convolution, down keeps its kernel, stride and padding, up is 1×1,
    and the rank is at most the smaller of its channel numbers.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator | None = None):
        super().__init__()
        self.convolution = {}
        if isinstance(base, nn.Conv2d):
            rank = min(rank, base.in_channels, base.out_channels)
            down = (rank, base.in_channels, *base.kernel_size)
            up = (base.out_channels, rank, 1, 1)
            self.convolution = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
        else:
            down, up = (rank, base.in_features), (base.out_features, rank)
        self.alpha, self.gain = alpha, alpha / rank
        self.down = nn.Parameter(torch.empty(down, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(up, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor, multipliers: Tensor) -> Tensor:
        """What is added to the layer's output. x [B, …], multipliers [B] or [1] → [B, …] in x's dtype.

        The narrow hidden state is scaled, not the output: one full-size product less in each direction.
        """
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        scale = (multipliers * self.gain).to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        if self.convolution:
            return F.conv2d(F.conv2d(x, down, **self.convolution) * scale, up)
        return F.linear(F.linear(x, down) * scale, up)

    def tensors(self) -> dict[str, Tensor]:
        """{part of a file key: tensor}, the names that web UIs know. Loaders divide alpha by down's first dimension."""
        return {
            "lora_down.weight": self.down.detach(),
            "lora_up.weight": self.up.detach(),
            "alpha": torch.tensor(self.alpha, dtype=torch.float32),
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` wrote; strength is kept if the file's alpha differs from this adaptor's."""
        with torch.no_grad():
            self.down.copy_(tensors["lora_down.weight"])
            self.up.copy_(tensors["lora_up.weight"] * (float(tensors["alpha"]) / self.alpha))
