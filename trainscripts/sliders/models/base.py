"""The contracts of a model family: `Family`, which needs no weights, and `Model`, a loaded model."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import SchedulerMixin
from PIL import Image
from torch import Tensor, nn

from sliders.config.families import Facts
from sliders.config.schema import PretrainedModel, Settings
from sliders.models.objective import Objective
from sliders.system.errors import InputError

SAMPLED = 16  # values of each weight in a fingerprint
Conditioning = dict[str, Tensor]  # a denoiser's inputs besides noisy latents and timesteps; each [B, …]


@dataclass(frozen=True)
class PromptEmbeds:
    """One prompt, encoded for the denoiser."""

    tokens: Tensor  # [n, C]
    pooled: Tensor | None = None  # [P], in families whose denoiser reads it


# Called with the number of denoising steps done. Returns the prompts of all rows from then on, None: as before.
AfterStep = Callable[[int], Sequence[PromptEmbeds] | None]


@dataclass(frozen=True)
class Geometry:
    """How a training image was cropped, in px."""

    original: tuple[int, int]  # (height, width) before cropping
    crop: tuple[int, int]  # (top, left) of the crop
    target: tuple[int, int]  # (height, width) of the crop


class Model(ABC):
    """A frozen model, loaded on the CPU. The caller moves its parts to other devices, the UNet with `place`.

    dtype: what all but the VAE computes in; until they are placed, weights may be in that of their file. denoiser: the
    denoiser, to which adaptors are attached. objective: of training. scheduler: diffusers' sampler.
    """

    facts: Facts
    dtype: torch.dtype
    denoiser: nn.Module
    objective: Objective
    scheduler: SchedulerMixin

    @property
    def distilled(self) -> bool:
        """Whether it has learnt to predict what guidance yields, and is asked without it."""
        return False

    @property
    @abstractmethod
    def vae(self) -> nn.Module:
        """Image encoder and decoder, float32."""

    @abstractmethod
    def normalise(self, latents: Tensor) -> Tensor:
        """Latents […, c, h, w] as the VAE's encoder yields them → as the denoiser gets them, of about unit variance."""

    @abstractmethod
    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the model by a few values of each weight. Call it before `free_text_encoders`."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], device: str) -> dict[str, PromptEmbeds]:
        """Returns {prompt: its embeddings}. The text encoders stay on `device` until `free_text_encoders`."""

    @abstractmethod
    def negative(self, prompt: str, embeds: dict[str, PromptEmbeds]) -> PromptEmbeds:
        """The embeddings that guidance moves away from; `embeds` contains `prompt`."""

    @abstractmethod
    def free_text_encoders(self) -> None:
        """Drops the text encoders. No prompt can be encoded afterwards."""

    @abstractmethod
    def conditioning(self, prompts: Sequence[PromptEmbeds], images: Sequence[Geometry]) -> Conditioning:
        """`denoise`'s inputs for a batch, from the prompt and image of each row. Those from images are on the CPU."""

    @abstractmethod
    def denoise(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the prediction [B, c, h, w] float32 for noisy [B, c, h, w] float32 and timesteps [B] int64."""

    @abstractmethod
    def check_sampling(self, place: str, remedy: str | None) -> None:
        """Raises InputError, naming `place` and the remedy, if `scheduler` cannot make pictures; remedy None: it need not."""

    def use_sampler(self, name: str) -> None:
        """Replaces `scheduler` by a sampler, one of the family's `samplers`."""
        raise NotImplementedError

    @abstractmethod
    def rows_at_once(self, guidance: float) -> int:
        """Rows per picture in a call of the denoiser while it samples: 2 if those of the negative prompt come before them."""

    @abstractmethod
    def sample_latents(
        self, prompts: Sequence[PromptEmbeds], negative: PromptEmbeds, noise: Tensor, generators: list[torch.Generator],
        steps: int, guidance: float, after_step: AfterStep,
    ) -> Tensor:  # fmt: skip
        """noise [B, c, h, w] float32 → latents of finished pictures [B, c, h, w], denoised by `scheduler`.

        One prompt and generator per row. after_step is called after each of the `steps`.
        """

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """RGB image → mean and standard deviation of its latents, [c, h, w] float32 on the CPU, before `normalise`."""
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, image.height, image.width, 3)
        pixels = pixels.to(self.vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.mean[0].cpu(), posterior.std[0].cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """latents [c, h, w] → picture [3, H, W] float32 in [0, 1], on the VAE's device."""
        latents = self.denormalise(latents[None].to(self.vae.device, self.vae.dtype))
        return to_picture(self.vae.decode(latents, return_dict=False)[0][0])


def to_picture(output: Tensor) -> Tensor:
    """What a VAE decodes, in [-1, 1] → float32 in [0, 1]."""
    return (output.float() / 2 + 0.5).clamp(0, 1)


def sampled(weights: Iterable[tuple[str, Tensor]]) -> Iterator[bytes]:
    """A few values of each weight, rounded to bfloat16: equal for float32 and bfloat16 copies of a model. Input of `digest`."""
    for name, weight in weights:
        flat = weight.detach().flatten()
        values = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].to("cpu", torch.bfloat16)
        yield f"{name} {tuple(weight.shape)} {values.tolist()}".encode()


def digest(samples: Iterable[bytes]) -> str:
    """SHA-256 of all `samples` together."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(sample)
    return found.hexdigest()


@dataclass(frozen=True)
class Naming:
    """How another program names layers and their parts in its files.

    key: module path → what the keys of its parts begin with. spelling: key of formats.spelling.SPELLINGS. separate: whether
    its files have `Family.joined` layers apart.
    """

    key: Callable[[str], str]
    spelling: str
    separate: bool = False


class Family(ABC):
    """A model family: its constants, how its models are found and loaded, and the names of its layers in files."""

    facts: Facts
    spelling: str = "kohya"  # key of formats.spelling.SPELLINGS
    alpha_is_rank: bool = False  # whether all programs take an alpha that a file lacks to be the rank
    # {last name of a layer: those of the layers beside it whose outputs it computes, one behind the other}, if the denoiser
    # has one form and other programs the other
    joined: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    namings: ClassVar[Mapping[str, Naming]] = {}  # of programs that do not read all of the family's slider files
    samplers: tuple[str, ...] = ()  # keys of schema.SAMPLERS that its models can use instead of their own scheduler

    def variant(self, settings: PretrainedModel) -> "Family":
        """The family itself, or the one of its versions that the settings ask for."""
        return self

    def is_distilled(self, settings: PretrainedModel) -> bool:
        """Whether the model is known, before it is loaded, to be step-distilled. Raises InputError for an unreadable folder."""
        return False

    def check_settings(self, settings: Settings) -> None:
        """Raises InputError for settings that this family does not support."""
        multiple = self.facts.size_multiple
        for prompts in settings.prompts:
            size = prompts.resolution
            if size % multiple:
                raise InputError(
                    f"{prompts.place}resolution: {size} is not a multiple of {multiple}, as {self.facts.title}'s latents "
                    f"require: use {max(multiple, size // multiple * multiple)}."
                )

    def remarks(self, settings: Settings) -> list[str]:
        """What a plan says of settings that are allowed, but perhaps not meant with this family's models."""
        return []

    @abstractmethod
    def check_source(self, settings: PretrainedModel) -> None:
        """Raises InputError if the model is missing, unreadable or of another family. Loads no weights."""

    @abstractmethod
    def load(self, settings: PretrainedModel, dtype: torch.dtype) -> Model:
        """Loads a model on the CPU, its VAE in float32, the rest for `dtype`. Raises InputError if that fails."""

    @abstractmethod
    def weightless_denoiser(self, name_or_path: str) -> nn.Module:
        """The denoiser on the meta device: layers and shapes, without weights."""

    def is_full_size(self, name_or_path: str) -> bool:
        """False for narrow models, which a CPU can train."""
        return self.weightless_denoiser(name_or_path).num_parameters() > 5e8

    @abstractmethod
    def file_key(self, module: str) -> str:
        """Module path in diffusers → what the keys of its adaptor's parts begin with in a slider file."""

    @abstractmethod
    def file_keys(self) -> frozenset[str]:
        """All prefixes of keys that web UIs can resolve, derived independently of `file_key`."""

    @abstractmethod
    def spellings(self, module: str) -> tuple[str, ...]:
        """The names of a module in other trainers' files, with dots."""

    def outer_spellings(self, module: str) -> tuple[str, ...]:
        """The same for a module outside the denoiser's blocks."""
        return (module,)

    @abstractmethod
    def metadata(self, prediction_type: str | None) -> dict[str, str]:
        """The entries in a slider file's metadata that identify the family to web UIs.

        prediction_type: of the model that the slider was trained on, None if it is not known.
        """
