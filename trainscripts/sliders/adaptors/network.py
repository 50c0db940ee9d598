"""Adaptors attached to a frozen denoiser, with one multiplier per row of the batch, and removed without a trace."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import Adaptor
from sliders.compute.patches import Patches
from sliders.config.schema import Network
from sliders.models.layers import choose_layers
from sliders.system.errors import InputError


class AdaptorNetwork(nn.Module):
    """Adaptors for the layers of a denoiser that the settings choose.

    The denoiser's modules are not replaced or renamed: until `remove()`, their `forward` is shadowed. Do not change the
    multipliers between a forward pass and its backward pass: gradient checkpointing repeats the forward pass, and with
    other multipliers the gradients would silently be wrong.
    """

    def __init__(self, denoiser: nn.Module, settings: Network, seed: int = 0):
        """Attaches the adaptors, with multiplier 1. seed: of their weights. Raises InputError if no layer is selected."""
        super().__init__()
        chosen = choose_layers(denoiser, settings)
        if not chosen:
            raise InputError(
                f"network: type {settings.type} with training_method {settings.training_method} adapts no layers"
                + (", or exclude removes them all: exclude fewer." if settings.exclude else ": use c3lier.")
            )
        generator = torch.Generator().manual_seed(seed)
        algorithm = ALGORITHMS[settings.algo]
        if settings.factor is not None:
            algorithm = partial(algorithm, factor=settings.factor)
        self._attach(denoiser, {path: algorithm(c.layer, c.rank, c.alpha, generator) for path, c in chosen.items()})

    @classmethod
    def holding(cls, denoiser: nn.Module, adaptors: Mapping[str, Adaptor]) -> Self:
        """Attaches {module path: its adaptor}, which may differ in algorithm, rank and gain, with multiplier 1."""
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._attach(denoiser, {path: adaptors[path] for path, _ in denoiser.named_modules() if path in adaptors})
        return network

    def _attach(self, denoiser: nn.Module, adaptors: Mapping[str, Adaptor]) -> None:
        """adaptors: {module path: its adaptor}, in the denoiser's order."""
        self.module_paths = tuple(adaptors)
        self.adaptors = nn.ModuleList(adaptors.values())
        self.layers = tuple(a.base for a in adaptors.values())  # not a ModuleList, which would register them as ours
        self._device = next(denoiser.parameters()).device
        self.to(self._device)
        self.set_multipliers(torch.ones(1))
        self._patches = Patches()
        for layer, adaptor in zip(self.layers, self.adaptors, strict=True):
            self._patches.replace(layer, self._adapted(layer.forward, adaptor))

    def _adapted(self, base_forward: Callable[[Tensor], Tensor], adaptor: Adaptor) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            scaling = self.scaling(adaptor.gain)
            return base_forward(x) if scaling is None else adaptor.adapted(base_forward, x, scaling)

        return forward

    def set_multipliers(self, multipliers: Tensor | None) -> None:
        """multipliers: [B] for the rows of the next batch, [1] for all rows, or None for the base model alone."""
        self._multipliers = multipliers
        self._scalings: dict[float, Tensor] | None = None  # {gain: multipliers · gain}
        if multipliers is not None:
            rows = multipliers.to(self._device, torch.float32)
            self._scalings = {gain: rows * gain for gain in {a.gain for a in self.adaptors}}

    def scaling(self, gain: float) -> Tensor | None:
        """The present multipliers · `gain` of an adaptor, [B] or [1] float32, or None without multipliers."""
        return None if self._scalings is None else self._scalings[gain]

    @property
    def multipliers(self) -> Tensor | None:
        """The argument of the last `set_multipliers`."""
        return self._multipliers

    def remove(self) -> None:
        """Restores the denoiser bit for bit. Networks attached after this one must be removed first."""
        self._patches.restore()

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Returns {module path: {part: tensor}} of all adaptors."""
        return {path: a.tensors() for path, a in zip(self.module_paths, self.adaptors, strict=True)}
