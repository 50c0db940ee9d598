"""Adaptors hung on a frozen denoiser: one multiplier per row of the batch, and off again without a trace."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sliders.adaptors import ALGORITHMS
from sliders.errors import InputError
from sliders.models.layers import select_layers
from sliders.schema import Network


class AdaptorNetwork(nn.Module):
    """Adaptors of all layers that `network.type` × `training_method` choose in a UNet.

    The UNet's modules stay where they are and keep their names; only their `forward` is shadowed until `remove()`.
    Set the multipliers before a forward pass and leave them until its backward is done: with gradient checkpointing
    the forward runs again inside backward, and other multipliers then would give wrong gradients without an error.
    """

    def __init__(self, unet: nn.Module, settings: Network, seed: int = 0):
        super().__init__()
        layers = select_layers(unet, settings.type, settings.training_method)
        if not layers:
            raise InputError(
                f"network: type {settings.type} with training_method {settings.training_method} adapts no layer: use c3lier."
            )
        generator = torch.Generator().manual_seed(seed)
        algorithm = ALGORITHMS[settings.algo]
        self.module_paths = tuple(layers)
        self.adaptors = nn.ModuleList(
            algorithm(layer, settings.rank, settings.alpha, generator) for layer in layers.values()
        )
        self._layers = tuple(layers.values())  # a tuple, so that the base layers are not registered as ours
        self._shadowed = tuple(layer.__dict__.get("forward") for layer in self._layers)
        self._device = next(unet.parameters()).device
        self._multipliers: Tensor | None = torch.ones(1, device=self._device)
        self.to(self._device)
        for layer, adaptor in zip(self._layers, self.adaptors, strict=True):
            layer.forward = self._adapted(layer.forward, adaptor)

    def _adapted(self, base_forward: Callable[[Tensor], Tensor], adaptor: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if self._multipliers is None:
                return base_forward(x)
            return base_forward(x) + adaptor(x, self._multipliers)

        return forward

    def set_multipliers(self, multipliers: Tensor | None) -> None:
        """multipliers [B], one per row of the next batch, or [1] for all rows. None: the base model alone."""
        self._multipliers = None if multipliers is None else multipliers.to(self._device, torch.float32)

    @property
    def multipliers(self) -> Tensor | None:
        """What was set last."""
        return self._multipliers

    def remove(self) -> None:
        """Leave the denoiser bit for bit as it was found. Networks hung on top of this one must come off first."""
        for layer, forward in zip(self._layers, self._shadowed, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """{module path: {part: tensor}} of every adaptor."""
        return {path: a.tensors() for path, a in zip(self.module_paths, self.adaptors, strict=True)}
