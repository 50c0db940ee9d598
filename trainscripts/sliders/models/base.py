"""The contracts of a model family: `Family` is what is known without weights, `Model` is a loaded one."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from PIL import Image
from torch import Tensor, nn

from sliders.config.schema import PretrainedModel, Settings
from sliders.models.schedule import NoiseSchedule
from sliders.system.errors import InputError

SAMPLED = 16  # values of each weight that tell one model from another
Conditioning = dict[str, Tensor]  # what a denoiser takes besides noisy latents and timesteps; each [B, ...]
AfterStep = Callable[[int], None]  # called with the number of denoising steps done


@dataclass(frozen=True)
class PromptEmbeds:
    """One prompt as the denoiser takes it."""

    tokens: Tensor  # [n, C]
    pooled: Tensor  # [P]


@dataclass(frozen=True)
class Geometry:
    """How an image was cut, in px, each (height, width) or (top, left)."""

    original: tuple[int, int]  # before anything was cut off
    crop: tuple[int, int]  # corner of what is trained
    target: tuple[int, int]  # what is trained


@dataclass(frozen=True)
class Facts:
    """Constants of a model family."""

    title: str  # as messages name it
    webui_version: str  # "sd version" in a web UI's sidecar
    size_multiple: int  # px: the sides of training images are multiples of it
    latent_factor: int  # px per latent, each way
    latent_channels: int
    default_size: int  # px: side of a picture where nothing says more


class Model(ABC):
    """A frozen model. Built on the CPU; its parts move to a device when asked.

    Attributes: `facts`, `unet` (the denoiser that adaptors attach to), `schedule`, `scheduler` (diffusers' sampler).
    """

    facts: Facts
    unet: nn.Module
    schedule: NoiseSchedule
    scheduler: SchedulerMixin

    @property
    @abstractmethod
    def scaling_factor(self) -> float:
        """Latents are the image encoder's output times this."""

    @property
    @abstractmethod
    def vae(self) -> nn.Module:
        """Image encoder and decoder, float32."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Tells models apart by a few of their weights; to be taken before the text encoders are freed."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], device: str) -> dict[str, PromptEmbeds]:
        """Each different prompt, encoded once. The encoders are on `device` only during the call."""

    @abstractmethod
    def negative(self, prompt: str, embeds: dict[str, PromptEmbeds]) -> PromptEmbeds:
        """The embeddings that guidance leads away from."""

    @abstractmethod
    def free_text_encoders(self) -> None:
        """Drop the text encoders; no prompt can be encoded afterwards."""

    @abstractmethod
    def conditioning(self, prompts: Sequence[PromptEmbeds], images: Sequence[Geometry]) -> Conditioning:
        """What `denoise` takes for a batch; what depends on the images is on the CPU."""

    @abstractmethod
    def denoise(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction, float32 [B, c, h, w], for noisy [B, c, h, w] float32 and timesteps [B] int64."""

    @abstractmethod
    def sample_latents(
        self, prompts: Sequence[PromptEmbeds], negative: PromptEmbeds, noise: Tensor, generators: list[torch.Generator],
        steps: int, guidance: float, after_step: AfterStep,
    ) -> Tensor:  # fmt: skip
        """noise [B, c, h, w] float32 -> latents of finished pictures, by `scheduler`, one generator per row."""

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """RGB picture of W x H px -> mean and standard deviation of its latents, float32 [c, h, w] on the CPU.

        Not yet multiplied by the scaling factor.
        """
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, image.height, image.width, 3)
        pixels = pixels.to(self.vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.mean[0].cpu(), posterior.std[0].cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """latents [c, h, w] -> picture [3, H, W] in [0, 1], float32, wherever the VAE is."""
        latents = latents[None].to(self.vae.device, self.vae.dtype) / self.scaling_factor
        return (self.vae.decode(latents, return_dict=False)[0][0].float() / 2 + 0.5).clamp(0, 1)

    @contextmanager
    def vae_on(self, device: str) -> Iterator[None]:
        """The VAE on `device` during the block, afterwards where it was."""
        home = self.vae.device
        self.vae.to(device)
        try:
            yield
        finally:
            self.vae.to(home)


def fingerprint(*modules: nn.Module) -> str:
    """Tells models apart by a few values of each weight, alike in every precision from bfloat16 up."""
    digest = hashlib.sha256()
    for name, weight in (named for module in modules for named in module.named_parameters()):
        flat = weight.detach().flatten()
        values = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(weight.shape)} {values.tolist()}".encode())
    return digest.hexdigest()


class Family(ABC):
    """One model family: its constants, where its models come from, and how files name its layers."""

    facts: Facts

    def check_settings(self, settings: Settings) -> None:
        """Raises InputError for values in the YAML that this family cannot use."""
        multiple = self.facts.size_multiple
        for prompts in settings.prompts:
            size = prompts.resolution
            if size % multiple:
                raise InputError(
                    f"{prompts.place}resolution: {size} is not a multiple of {multiple}, which {self.facts.title}'s latents "
                    f"need: use {max(multiple, size // multiple * multiple)}."
                )

    @abstractmethod
    def check_source(self, settings: PretrainedModel) -> None:
        """Raises InputError if the model does not exist, cannot be read, or is of another family. Loads no weights."""

    @abstractmethod
    def load(self, settings: PretrainedModel, dtype: torch.dtype) -> Model:
        """The model on the CPU, its image encoder in float32, the rest in `dtype`. Raises InputError."""

    @abstractmethod
    def weightless_denoiser(self, name_or_path: str) -> nn.Module:
        """The denoiser on the meta device: layers and shapes without weights."""

    def is_full_size(self, name_or_path: str) -> bool:
        """False for the narrow models of the tests and the shapes world, which a CPU can train."""
        return self.weightless_denoiser(name_or_path).num_parameters() > 5e8

    @abstractmethod
    def file_key(self, module: str) -> str:
        """Module path in diffusers -> key of its adaptor in a slider file, without the part."""

    @abstractmethod
    def file_keys(self) -> frozenset[str]:
        """Every key that web UIs can resolve, listed independently of `file_key`."""

    @abstractmethod
    def spellings(self, module: str) -> tuple[str, ...]:
        """Names that other trainers give a module in their files."""

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """Entries of a slider file's metadata by which web UIs recognise the family."""
