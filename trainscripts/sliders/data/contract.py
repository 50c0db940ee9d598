"""What a run trains on, in three stages: `Checked` data, known before weights are loaded; a `Source`, which has encoded it and
says which prompts it needs; its `Steps`, with draws and batches. Each is made from the one before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from torch import Tensor
from torch.utils._pytree import tree_map

from sliders.adaptors.network import AdaptorNetwork
from sliders.config.prompts import PromptSet
from sliders.config.schema import Settings
from sliders.data.draws import Row, StepDraw
from sliders.data.timesteps import TimestepDistribution
from sliders.models.base import Conditioning, Model, PromptEmbeds
from sliders.system.processes import Processes


class Checked(ABC):
    """Data that has passed every check that needs no weights."""

    scales: tuple[float, ...]  # ascending

    @abstractmethod
    def fitted_size(self, image: int, resolution: int) -> tuple[int, int]:
        """(width, height) in px at which an image, by its index, is trained."""

    @abstractmethod
    def fitted_sizes(self, resolution: int) -> list[tuple[int, int]]:
        """Those of all images, each once, ascending."""

    @abstractmethod
    def place(self, row: Row) -> str:
        """Which row it is, for messages."""

    @abstractmethod
    def identity(self) -> dict:
        """What must be the same when a run is resumed."""

    @abstractmethod
    def metadata(self, prompts: tuple[PromptSet, ...]) -> dict[str, str | dict | list]:
        """What a slider file tells of the data."""

    @abstractmethod
    def describe(self, prompts: tuple[PromptSet, ...], whole: bool = False) -> list[str]:
        """Lines of the plan. whole: with all rows of a table, however many there are."""

    @abstractmethod
    def remarks(self, prompts: tuple[PromptSet, ...]) -> list[str]:
        """What is allowed, but perhaps not meant."""


@dataclass(frozen=True)
class Batch:
    """The B rows of one optimizer step. What else a loss needs is in the subclass of its source."""

    timesteps: Tensor  # [B] int64; conditions the denoiser, and is how noisy the latents it gets are
    scales: Tensor  # [B] float32: the multiplier of each row
    conditioning: Conditioning  # of the adapted model

    def to(self, device: str) -> Self:
        """The batch on the device."""
        return tree_map(lambda tensor: moved(tensor, device), self)


def moved(tensor: Tensor, device: str) -> Tensor:
    """To the device without waiting for it: only a copy from pinned memory is asynchronous."""
    if device.startswith("cuda") and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Steps:
    """draw: number of a step → its draw, of all processes. make_batch: draw → batch, on the run's device."""

    draw: Callable[[int], StepDraw]
    make_batch: Callable[[StepDraw], Batch]
    timesteps: TimestepDistribution  # that draws follow, with weights for the losses


class Source(ABC):
    """Encodes what needs the VAE when it is made; the VAE is on `device` only meanwhile."""

    texts: list[str]  # prompts that `steps` needs the embeddings of

    @abstractmethod
    def __init__(
        self,
        settings: Settings,
        data: Checked,
        model: Model,
        timesteps: tuple[int, ...],
        device: str,
        processes: Processes,
    ):
        """timesteps: those that may be drawn."""

    @abstractmethod
    def steps(self, network: AdaptorNetwork, embeds: dict[str, PromptEmbeds]) -> Steps:
        """network: attached to the model's denoiser. embeds: of `texts`, on the device."""
