"""What the steps of a run train on: images in scale folders, or latents that the model makes from prompts.

`SOURCES` is looked up by the kind of `Settings.data`. Everything after a batch is the same for all sources.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from sliders.adaptors.network import AdaptorNetwork
from sliders.config.prompts import CAPTION
from sliders.config.schema import Settings
from sliders.data.batch import Batch, BatchMaker, prompts_to_encode
from sliders.data.dataset import ScaleFolders
from sliders.data.draws import ROWS_PER_PAIR, Draws, StepDraw, TextDraws
from sliders.data.latents import LatentCache, View, views
from sliders.data.noise_levels import measure_noise_levels
from sliders.data.text import MultiplierRange, TextBatchMaker
from sliders.data.timesteps import TimestepDistribution, biased, measured, timestep_of
from sliders.models.base import Model, PromptEmbeds
from sliders.system.errors import InputError
from sliders.system.processes import Processes

Checked = ScaleFolders | MultiplierRange  # what `Source.find` returns, and all that is known before weights are loaded
Start = tuple[Callable[[int], StepDraw], Callable[[StepDraw], Batch], TimestepDistribution]


class Source(ABC):
    """Made once the settings are checked; then `encode` is called, and `start` when the adaptors are attached."""

    def __init__(
        self, settings: Settings, data: Checked, timesteps: tuple[int, ...], device: str, processes: Processes
    ):
        """data: what `find` returned. timesteps: those that may be drawn."""
        self.settings, self.data, self.timesteps, self.device = settings, data, timesteps, device
        self.processes = processes

    @staticmethod
    @abstractmethod
    def find(settings: Settings, size_multiple: int) -> Checked:
        """Checks everything that needs no weights. Raises InputError. size_multiple: px, of a training size."""

    @abstractmethod
    def encode(self, model: Model) -> list[str]:
        """Encodes what needs the VAE. Returns the prompts that `start` needs the embeddings of."""

    @abstractmethod
    def start(self, model: Model, network: AdaptorNetwork, embeds: dict[str, PromptEmbeds]) -> Start:
        """Returns what is drawn for a step, the batch of a draw, and the distribution of its timesteps."""


class ImageSource(Source):
    """Scale folders, all images encoded once."""

    @staticmethod
    def find(settings: Settings, size_multiple: int) -> ScaleFolders:
        data = ScaleFolders.find(settings.data, size_multiple)
        if len(data.unchanging) == len(data.names):
            raise InputError(
                f"--folders: each image is the same in all folders of {data.folder_main}, so there is nothing to learn: put the "
                "images of each scale into its folder."
            )
        grouped = settings.train.scales_per_step
        most = min(len(data.scales), *(ROWS_PER_PAIR * p.batch_size for p in settings.prompts))
        if grouped > most:
            raise InputError(
                f"train.scales_per_step: {grouped} is more than {most}, the number of scales or of images in a step: lower it, or "
                "raise batch_size."
            )
        for prompts in settings.prompts:
            if prompts.needs_captions and not data.captions:
                raise InputError(
                    f"{prompts.place}{CAPTION} stands for the caption of each image, but {data.folder_main} holds no captions: "
                    "write NAME.txt beside each NAME.png, or remove it."
                )
        return data

    def encode(self, model: Model) -> list[str]:
        self._cache = LatentCache(model, self.data, views(self.settings.prompts), self.device, self.processes)
        return prompts_to_encode(self.settings.prompts, self.data.captions)

    def start(self, model: Model, network: AdaptorNetwork, embeds: dict[str, PromptEmbeds]) -> Start:
        settings, data = self.settings, self.data
        make_batch = BatchMaker(model, self._cache, settings.prompts, data.captions, embeds, data.scales, self.device)
        timesteps = self._distribution(model, network, embeds)
        draw = Draws(
            seed=settings.train.seed, prompts=settings.prompts, num_names=len(data.names), num_scales=len(data.scales),
            timesteps=timesteps, shape_of=data.fitted_size, caption_dropout=settings.train.caption_dropout,
            scales_per_step=settings.train.scales_per_step, processes=self.processes.count, untrained=data.untrained,
        )  # fmt: skip
        return draw, make_batch, timesteps

    def _distribution(
        self, model: Model, network: AdaptorNetwork, embeds: dict[str, PromptEmbeds]
    ) -> TimestepDistribution:
        """By `train.timestep_bias`, or measured on the images, each under the neutral prompt of the first prompt set."""
        bias, chosen = self.settings.train.timestep_bias, self.settings.prompts[0]
        if bias != "auto":
            return biased(self.timesteps, bias)
        captions = self.data.captions or ("",) * len(self.data.names)
        neutral = [embeds[chosen.texts(caption)[0]] for caption in captions]
        network.set_multipliers(None)
        view = View(chosen.resolution, chosen.dynamic_crops)
        levels = measure_noise_levels(model, self._cache, view, neutral, self.device)
        found = measured(self.timesteps, self.processes.gather(levels)[0])  # those of the first, for all to draw alike
        print(f"note: timesteps measured on the images: half of the draws are above {found.median}", flush=True)
        return found


class TextSource(Source):
    """Latents that the adapted model makes from noise, as far as the step's timestep."""

    @staticmethod
    def find(settings: Settings, size_multiple: int) -> MultiplierRange:
        train = settings.train
        refused = {
            "timestep_bias": (train.timestep_bias == "auto", "is measured on images, of which there are none: give a number"),
            "caption_dropout": (train.caption_dropout > 0, "leaves out captions, of which there are none: set it to 0"),
            "scales_per_step": (train.scales_per_step > 1, "groups images, of which there are none: set it to 1"),
            "noise_scheduler": (train.noise_scheduler != "ddim", "does not make the latents of a text slider: set it to ddim"),
        }  # fmt: skip
        problems = [f"train.{k}: {getattr(train, k)} {why}." for k, (refuse, why) in refused.items() if refuse]
        if problems:
            raise InputError("\n".join(problems))
        return MultiplierRange(settings.data.scales)

    def encode(self, model: Model) -> list[str]:
        sets = self.settings.prompts
        return ["", *(text for p in sets for text in (p.target, p.positive, p.unconditional, p.neutral))]

    def start(self, model: Model, network: AdaptorNetwork, embeds: dict[str, PromptEmbeds]) -> Start:
        settings, steps = self.settings, self.settings.train.max_denoising_steps
        path = tuple(timestep_of(k, steps) for k in range(steps))
        timesteps = biased(self.timesteps, settings.train.timestep_bias)
        draw = TextDraws(settings.train.seed, settings.prompts, self.data.scales, timesteps, self.processes.count)
        return draw, TextBatchMaker(model, network, settings.prompts, embeds, path, self.device), timesteps


SOURCES: dict[str, type[Source]] = {"images": ImageSource, "text": TextSource}
