"""Adaptors attached to a frozen denoiser, with one multiplier per row of the batch, and removed without a trace."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import Adaptor, Joint
from sliders.compute.attention import join_projections, self_attention_projections, separate_projections
from sliders.config.schema import Network
from sliders.models.layers import choose_layers
from sliders.system.errors import InputError


class AdaptorNetwork(nn.Module):
    """Adaptors for the layers of a UNet that the settings choose.

    The UNet's modules are not replaced or renamed: until `remove()`, their `forward` is shadowed. Do not change the
    multipliers between a forward pass and its backward pass: gradient checkpointing repeats the forward pass, and with
    other multipliers the gradients would silently be wrong.
    """

    def __init__(self, unet: nn.Module, settings: Network, seed: int = 0):
        """Attaches the adaptors, with multiplier 1. seed: of their weights. Raises InputError if no layer is selected."""
        super().__init__()
        chosen = choose_layers(unet, settings)
        if not chosen:
            raise InputError(
                f"network: type {settings.type} with training_method {settings.training_method} adapts no layers"
                + (", or exclude removes them all: exclude fewer." if settings.exclude else ": use c3lier.")
            )
        generator = torch.Generator().manual_seed(seed)
        algorithm = ALGORITHMS[settings.algo]
        if settings.factor is not None:
            algorithm = partial(algorithm, factor=settings.factor)
        self.module_paths = tuple(chosen)
        self.adaptors = nn.ModuleList(algorithm(c.layer, c.rank, c.alpha, generator) for c in chosen.values())
        self._layers = tuple(c.layer for c in chosen.values())  # not a ModuleList, which would register them as ours
        self._shadowed = tuple(layer.__dict__.get("forward") for layer in self._layers)
        self._device = next(unet.parameters()).device
        self._dtype = unet.dtype
        self.to(self._device)
        self.set_multipliers(torch.ones(1))
        for layer, adaptor in zip(self._layers, self.adaptors, strict=True):
            layer.forward = self._adapted(layer.forward, adaptor)
        self._share_inputs(unet)

    def _share_inputs(self, unet: nn.Module) -> None:
        """Joins query, key and value in self-attention layers where all three are adapted and can be joined."""
        self._joined = []
        adaptor_of = {id(layer): adaptor for layer, adaptor in zip(self._layers, self.adaptors, strict=True)}
        for attention, layers in self_attention_projections(unet):
            three = [adaptor_of.get(id(layer)) for layer in layers]
            joint = None if None in three else type(three[0]).join(three)
            if joint is not None and join_projections(attention, self._joint(joint, three[0].gain, layers)):
                self._joined.append(attention)

    def _joint(self, joint: Joint, gain: float, layers: Sequence[nn.Module]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        forwards = [layer.forward for layer in layers]

        def project(x: Tensor) -> tuple[Tensor, ...]:
            others = any(layer.forward is not forward for layer, forward in zip(layers, forwards, strict=True))
            if self._strengths is None or others:
                return tuple(layer(x) for layer in layers)
            return joint(x, self._strengths[gain])

        return project

    def _adapted(self, base_forward: Callable[[Tensor], Tensor], adaptor: Adaptor) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if self._strengths is None:
                return base_forward(x)
            return adaptor.adapted(base_forward, x, self._strengths[adaptor.gain])

        return forward

    def set_multipliers(self, multipliers: Tensor | None) -> None:
        """multipliers: [B] for the rows of the next batch, [1] for all rows, or None for the base model alone."""
        self._multipliers = multipliers
        self._strengths: dict[float, Tensor] | None = None  # {gain: multipliers · gain}
        if multipliers is not None:
            rows = multipliers.to(self._device, torch.float32)
            self._strengths = {gain: (rows * gain).to(self._dtype) for gain in {a.gain for a in self.adaptors}}

    @property
    def multipliers(self) -> Tensor | None:
        """The argument of the last `set_multipliers`."""
        return self._multipliers

    def remove(self) -> None:
        """Restores the denoiser bit for bit. Networks attached after this one must be removed first."""
        for attention in self._joined:
            separate_projections(attention)
        for layer, forward in zip(self._layers, self._shadowed, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Returns {module path: {part: tensor}} of all adaptors."""
        return {path: a.tensors() for path, a in zip(self.module_paths, self.adaptors, strict=True)}
