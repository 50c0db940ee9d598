"""Adaptors hung on a frozen denoiser: one multiplier per row of the batch, and off again without a trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import Adaptor, Joint
from sliders.compute.attention import join_projections, own_projections, part_projections
from sliders.config.schema import Network
from sliders.models.layers import select_layers
from sliders.system.errors import InputError


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
        self._dtype = unet.dtype
        self.to(self._device)
        self.set_multipliers(torch.ones(1))
        for layer, adaptor in zip(self._layers, self.adaptors, strict=True):
            layer.forward = self._adapted(layer.forward, adaptor)
        self._share_inputs(unet)

    def _share_inputs(self, unet: nn.Module) -> None:
        """Self-attention layers whose query, key and value are all adapted compute the three together, where they can."""
        self._joined = []
        adaptor_of = {id(layer): adaptor for layer, adaptor in zip(self._layers, self.adaptors, strict=True)}
        for attention, layers in own_projections(unet):
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
        """multipliers [B], one per row of the next batch, or [1] for all rows. None: the base model alone."""
        self._multipliers = multipliers
        self._strengths: dict[float, Tensor] | None = None  # gain → multipliers × gain, once for all layers
        if multipliers is not None:
            rows = multipliers.to(self._device, torch.float32)
            self._strengths = {gain: (rows * gain).to(self._dtype) for gain in {a.gain for a in self.adaptors}}

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base model alone during the block; afterwards the multipliers are as before."""
        kept = self._multipliers, self._strengths
        self.set_multipliers(None)
        try:
            yield
        finally:
            self._multipliers, self._strengths = kept

    @property
    def multipliers(self) -> Tensor | None:
        """What was set last."""
        return self._multipliers

    def remove(self) -> None:
        """Leave the denoiser bit for bit as it was found. Networks hung on top of this one must come off first."""
        for attention in self._joined:
            part_projections(attention)
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
