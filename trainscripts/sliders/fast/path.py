"""The fast path: takes over layers and blocks of a denoiser or a VAE as a whole, and gives them back.

Everything that it replaces goes through `Patches`, so the plain path, PyTorch's own operations, is what remains.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Self

import torch
from diffusers import ModelMixin, ZImageTransformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from sliders.adaptors.base import Adaptor
from sliders.adaptors.lora import LoRA
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.patches import Patches, check_own
from sliders.compute.quantization import ByteLinear, Unpack
from sliders.compute.quantization import unpacked as plainly_unpacked
from sliders.fast.attention import (
    AttentionProcessor,
    ChosenAttention,
    ContextProjections,
    Projection,
    Together,
    attend_with,
    plain_attentions,
)
from sliders.fast.blocks import fuse_blocks
from sliders.fast.frozen import frozen_kind
from sliders.fast.kernel_support import can_fuse
from sliders.fast.low_rank import FusedLoRA
from sliders.fast.unpacking import unpacked
from sliders.fast.weights import FastWeights
from sliders.fast.zimage_blocks import fuse_zimage
from sliders.models.base import Model

TRANSFORMERS = {ZImageTransformer2DModel: fuse_zimage}


class FastPath:
    """Until `restore`, or the end of its `with` block, a denoiser with its networks computes the same, faster.

    Adapted linear layers and convolutions are computed together with their LoRA, query, key and value at once; so are the
    keys and values of a prompt in all layers, and blocks by kernels where these run. Layers that several networks adapt,
    and adaptors that are not LoRAs, stay as they are.

    No network may be attached or removed meanwhile. weights: of each network.
    """

    def __init__(
        self, denoiser: ModelMixin, networks: Sequence[AdaptorNetwork] = (), attention: str = "auto", trains: bool = False
    ):  # fmt: skip
        """The denoiser is on its device. attention: `other.attention`. trains: whether the weights need room for a gradient."""
        for module in denoiser.modules():
            check_own(module)
        self._denoiser, self._networks, self._patches = denoiser, networks, Patches()
        self.weights = [FastWeights(network, denoiser.dtype, trains) for network in networks]
        self._adapted = self._adapted_once()
        self._unpack_with(unpacked)
        attend = attend_with(attention, denoiser.device)
        if can_fuse(str(denoiser.device)):
            fuse_blocks(denoiser, self._patches)
            for kind, fuse in TRANSFORMERS.items():
                if isinstance(denoiser, kind):
                    fuse(denoiser, attend, self._together, self._patches)
        attentions = plain_attentions(denoiser)
        crossing = [m for m in attentions.values() if m.is_cross_attention]
        context = ContextProjections(denoiser, crossing, self._patches)
        projections = {m: self._projection(m) for m in attentions.values() if not m.is_cross_attention}
        own = {n: AttentionProcessor(attend, projections.get(m), context.reader(m)) for n, m in attentions.items()}
        self._attention = ChosenAttention(denoiser, attention, own)
        for layer in self._adapted:
            self._fuse(layer)

    def _adapted_once(self) -> dict[nn.Module, tuple[Adaptor, AdaptorNetwork, FastWeights]]:
        """Layers that exactly one network adapts."""
        found: dict[nn.Module, list] = {}
        for network, weights in zip(self._networks, self.weights, strict=True):
            for layer, adaptor in zip(network.layers, network.adaptors, strict=True):
                found.setdefault(layer, []).append((adaptor, network, weights))
        return {layer: entries[0] for layer, entries in found.items() if len(entries) == 1}

    def _fused(self, layers: Sequence[nn.Module]) -> tuple[FusedLoRA, Callable[[], Tensor | None]] | None:
        """The layers with their LoRAs at once, and their present scaling. None if they cannot be computed so."""
        entries = [self._adapted.get(layer) for layer in layers]
        kind = frozen_kind(layers)
        if kind is None or None in entries:
            return None
        adaptors, networks, weights = zip(*entries, strict=True)
        shapes = {(a.gain, a.down.shape) if isinstance(a, LoRA) else None for a in adaptors}
        if len(shapes) > 1 or None in shapes or len(set(networks)) > 1:
            return None
        return FusedLoRA.of(kind, adaptors, weights[0]), partial(networks[0].scaling, adaptors[0].gain)

    def _projection(self, attention: Attention) -> Projection | None:
        """Computes a self-attention's query, key and value at once, if all three are adapted alike."""
        layers = (attention.to_q, attention.to_k, attention.to_v)
        together = self._together(layers)

        def project(x: Tensor) -> tuple[Tensor, ...] | None:
            found = together(x)
            return None if found is None else found.chunk(len(layers), -1)

        return together and project

    def _together(self, layers: Sequence[nn.Module]) -> Together | None:
        """Computes layers of one input at once, side by side, if all are adapted alike."""
        found = self._fused(layers)
        if found is None:
            return None
        for layer in layers:
            del self._adapted[layer]
        fused, scaling = found

        def compute(x: Tensor) -> Tensor | None:
            present = scaling()
            return None if present is None else fused(x, present)

        return compute

    def _fuse(self, layer: nn.Module) -> None:
        """Computes one adapted layer together with its LoRA, if it has one."""
        found, plain = self._fused([layer]), layer.forward
        if found is None:
            return
        fused, scaling = found

        def forward(x: Tensor) -> Tensor:
            present = scaling()
            return plain(x) if present is None else fused(x, present)

        self._patches.replace(layer, forward)

    def _unpack_with(self, unpack: Unpack) -> None:
        for layer in self._denoiser.modules():
            if isinstance(layer, ByteLinear):
                layer.unpack = unpack

    def restore(self) -> None:
        """Gives everything back: the denoiser and the networks compute as before."""
        self._attention.restore()  # before the patches of blocks, on top of which it may be
        self._patches.restore()
        self._unpack_with(plainly_unpacked)
        for network in self._networks:
            for adaptor in network.adaptors:
                adaptor.compute_with({})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.restore()


def fuse_vae(vae: nn.Module, device: str) -> Patches:
    """Fuses the blocks of a VAE on a GPU. PyTorch's own group norms take half of its time, and more on channels-last images."""
    patches = Patches()
    if can_fuse(device):
        vae.to(memory_format=torch.channels_last)
        fuse_blocks(vae, patches)
    return patches


@contextmanager
def vae_on(model: Model, device: str) -> Iterator[None]:
    """Moves the VAE to `device` for the block, where a GPU runs it with fused kernels, then back."""
    home = model.vae.device
    model.vae.to(device)
    try:
        with fuse_vae(model.vae, device):
            yield
    finally:
        model.vae.to(home)
