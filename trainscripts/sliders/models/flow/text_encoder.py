"""The text encoder in a diffusers folder: which one it is shows before it is loaded, and it is loaded only if it is needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from sliders.compute.device import place
from sliders.models.base import digest, sampled
from sliders.models.flow.kinds import Kind
from sliders.models.folders import part_config, part_weights
from sliders.models.places import loading

PART = "text_encoder"
HEADROOM = 2**30  # bytes on a GPU, for one prompt's activations


@dataclass(frozen=True)
class StoredEncoder:
    """An encoder that has passed the checks of `inspect_folder`. where: how sentences about the model begin."""

    folder: Path
    kind: Kind
    dtype: torch.dtype
    where: str

    @cached_property
    def samples(self) -> list[bytes]:
        """`base.sampled` of the encoder as it is when loaded, from a few pages of its files."""
        return [*sampled(self._stored())]

    @property
    def identity(self) -> str:
        return digest(self.samples)

    def _stored(self) -> Iterator[tuple[str, Tensor]]:
        config = part_config(self.folder, PART, self.where)
        names = dict(self.kind.build_empty(PART, config).named_parameters())
        if config.get("tie_word_embeddings"):
            names.pop("lm_head.weight", None)
        yield from part_weights(self.folder, PART, self.where).read(names).items()

    def load(self) -> nn.Module:
        """On the CPU. Raises InputError."""
        with loading(PART, self.where):
            return Qwen3ForCausalLM.from_pretrained(self.folder / PART, local_files_only=True, dtype=self.dtype).eval()


def place_encoder(encoder: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Prepares an encoder for prompts on `device`: a GPU that is too small for it gets its layers one after the other."""
    size = sum(p.numel() for p in encoder.parameters()) * dtype.itemsize
    if device.startswith("cuda") and not _fits(size, torch.cuda.mem_get_info(device)[0]):
        stream(encoder, device, dtype)
    else:
        place(encoder, device, dtype)


def _fits(size: int, free: int) -> bool:
    return size + HEADROOM <= free


def stream(encoder: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Keeps the weights in main memory, from where each layer gets its own on `device` for as long as it computes."""
    place(encoder, "cpu", dtype)
    cpu_offload(encoder, execution_device=torch.device(device))


def release(encoder: nn.Module | None) -> None:
    """Undoes `stream`, whose hooks would keep the encoder in memory."""
    if encoder is not None:
        remove_hook_from_submodules(encoder)
        for module in encoder.modules():
            vars(module).pop("forward", None)  # the module's own, but as a reference to itself
