"""The form of diffusers' ZImageTransformer2DModel that is adapted: it computes the same for rows in tensors.

diffusers' own takes and returns lists, with a prompt of its own length per row, and Python code that walks over the rows. Here
lengths are values in tensors, so calls of one shape run the same operations, and can be captured as CUDA graphs.
"""

import torch
from accelerate import init_empty_weights
from diffusers import ZImageTransformer2DModel
from diffusers.models.attention import AttentionMixin
from torch import Tensor, nn
from torch.nn import functional as F

MULTIPLE = 32  # the tokens of an image, and those of a prompt, are filled up to a multiple of it with learnt ones
PATCH = 2  # latents along each side of a patch
PATCHES = "2-1"  # name of the layers for patches of that size, and of one frame


class StackedTransformer(ZImageTransformer2DModel, AttentionMixin):
    def forward(
        self, noisy: Tensor, time: Tensor, tokens: Tensor, of_prompt: Tensor, attended: Tensor | None = None
    ) -> tuple[Tensor]:
        """Returns x₀ − ε [B, c, h, w], in a tuple as other denoisers' forward does.

        noisy [B, c, h, w] at `time` [B]: 0 is noise, 1 the image. tokens [B, m, C] of the prompts; of_prompt [B, m] bool: which
        are a prompt's own, where the others are `cap_pad_token`. attended [B, m] bool: which are in the row's own multiple of
        MULTIPLE, the others being there only for rows with longer prompts. None: all are.
        """
        modulation = self.t_embedder(time * self.t_scale).type_as(noisy)
        size = noisy.shape[-2] // PATCH, noisy.shape[-1] // PATCH
        count, lengths = size[0] * size[1], _lengths(of_prompt, attended)
        image = self.all_x_embedder[PATCHES](to_patches(noisy))
        padding = self.x_pad_token.expand(len(image), -count % MULTIPLE, -1)
        image = torch.cat([image, padding], 1)
        image_places = self._rotations(_image_places(size, lengths))
        for block in self.noise_refiner:
            image = self._run(block, image, None, image_places, modulation)
        text = torch.where(of_prompt[..., None], self.cap_embedder(tokens), self.cap_pad_token)
        text_places = self._rotations(_text_places(of_prompt))
        for block in self.context_refiner:
            text = self._run(block, text, attended, text_places)
        both, places = torch.cat([image, text], 1), torch.cat([image_places, text_places], 1)
        mask = None if attended is None else F.pad(attended, (image.shape[1], 0), value=True)
        for block in self.layers:
            both = self._run(block, both, mask, places, modulation)
        return (to_latents(self.all_final_layer[PATCHES](both[:, :count], modulation), size),)

    def _run(self, block: nn.Module, *arguments: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)

    def _rotations(self, places: Tensor) -> Tensor:
        """places [B, n, 3] → rotary embedding [B, n, d / 2] complex."""
        return self.rope_embedder(places.flatten(0, 1)).unflatten(0, places.shape[:2])


def stacked(transformer: ZImageTransformer2DModel) -> StackedTransformer:
    """The transformer in the form that is adapted, with the same parameters."""
    if isinstance(transformer, StackedTransformer):
        return transformer
    with init_empty_weights():
        found = StackedTransformer.from_config(transformer.config)
    found.load_state_dict(transformer.state_dict(), assign=True)
    return found


def to_patches(latents: Tensor) -> Tensor:
    """[B, c, 2 h, 2 w] → [B, h · w, 4 c], row by row. Value c (2 i + j) + k is channel k at row i, column j of a patch."""
    patches = latents.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # [B, c, h, 2, w, 2]
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def to_latents(patches: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `to_patches`. size: (h, w)."""
    values = patches.unflatten(1, size).unflatten(3, (PATCH, PATCH, -1))  # [B, h, w, 2, 2, c]
    return values.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def _lengths(of_prompt: Tensor, attended: Tensor | None) -> Tensor:
    """Number of tokens [B] that each row's prompt has with its padding."""
    if attended is None:
        return torch.full((len(of_prompt),), of_prompt.shape[1], device=of_prompt.device)
    return attended.sum(1)


def _text_places(of_prompt: Tensor) -> Tensor:
    """Places of the prompts' tokens for the rotary embedding, [B, m, 3] int64: 1 + index, 0, 0."""
    indexes = torch.arange(1, of_prompt.shape[1] + 1, device=of_prompt.device)
    return F.pad(indexes[:, None], (0, 2)).expand(len(of_prompt), -1, -1)


def _image_places(size: tuple[int, int], lengths: Tensor) -> Tensor:
    """Places of the patches, [B, n, 3] int64: behind the row's prompt, row, column. Those that fill up are 0, 0, 0."""
    rows, columns = torch.meshgrid(*(torch.arange(side, device=lengths.device) for side in size), indexing="ij")
    inside = torch.stack([rows, columns], -1).flatten(0, 1).expand(len(lengths), -1, -1)
    behind = (lengths + 1)[:, None, None].expand(-1, inside.shape[1], -1)
    return F.pad(torch.cat([behind, inside], -1), (0, 0, 0, -inside.shape[1] % MULTIPLE))
