"""The sources of `data.contract`: images in scale folders, and latents that the model makes from prompts."""

from collections.abc import Callable
from typing import NamedTuple

from sliders.adaptors.network import AdaptorNetwork
from sliders.config.prompts import CAPTION
from sliders.config.schema import Settings
from sliders.data.batch import BatchMaker
from sliders.data.contract import Checked, Source, Steps
from sliders.data.dataset import ScaleFolders
from sliders.data.draws import ROWS_PER_PAIR, Draws, TextDraws
from sliders.data.latents import LatentCache, View, views
from sliders.data.noise_levels import measure_noise_levels
from sliders.data.text import MultiplierRange, TextBatchMaker
from sliders.data.timesteps import TimestepDistribution, measured, timestep_of, unmeasured
from sliders.models.base import Model, PromptEmbeds
from sliders.system.errors import InputError
from sliders.system.processes import Processes


def find_images(settings: Settings, size_multiple: int) -> ScaleFolders:
    """Raises InputError for whatever is wrong with the folders, or does not fit the settings."""
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


class ImageSource(Source):
    """Scale folders, all images encoded once."""

    def __init__(
        self, settings: Settings, data: ScaleFolders, model: Model, timesteps: tuple[int, ...], device: str, processes: Processes
    ):  # fmt: skip
        self._settings, self._data, self._model, self._timesteps = settings, data, model, timesteps
        self._device, self._processes = device, processes
        self._cache = LatentCache(model, data, views(settings.prompts), device, processes)
        self._texts = data.texts(settings.prompts)
        self.texts = [text for images in self._texts for pair in images for text in pair]

    def steps(self, network: AdaptorNetwork, embeds: dict[str, PromptEmbeds]) -> Steps:
        settings, data = self._settings, self._data
        timesteps = self._distribution(network, embeds)
        draw = Draws(
            seed=settings.train.seed, prompts=settings.prompts, num_images=len(data.names), scales=data.scales,
            timesteps=timesteps, shape_of=data.fitted_size, caption_dropout=settings.train.caption_dropout,
            scales_per_step=settings.train.scales_per_step, processes=self._processes.count,
        )  # fmt: skip
        make_batch = BatchMaker(self._model, self._cache, settings.prompts, self._texts, embeds, self._device)
        return Steps(draw, make_batch, timesteps)

    def _distribution(self, network: AdaptorNetwork, embeds: dict[str, PromptEmbeds]) -> TimestepDistribution:
        """By the settings, or measured on the images, each under the neutral prompt of the first prompt set."""
        train, chosen = self._settings.train, self._settings.prompts[0]
        if train.timestep_bias != "auto":
            return unmeasured(self._timesteps, train)
        neutral = [embeds[text] for text, _ in self._texts[0]]
        network.set_multipliers(None)
        view = View(chosen.resolution, chosen.dynamic_crops)
        levels = measure_noise_levels(self._model, self._cache, view, neutral, self._device)
        found = measured(
            self._timesteps, self._processes.gather(levels)[0]
        )  # those of the first, for all to draw alike
        print(f"note: timesteps measured on the images: half of the draws are above {found.median}", flush=True)
        return found


def find_range(settings: Settings, size_multiple: int) -> MultiplierRange:
    """Raises InputError for settings that mean something with images alone."""
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


class TextSource(Source):
    """Latents that the adapted model makes from noise, as far as the step's timestep."""

    def __init__(
        self, settings: Settings, data: MultiplierRange, model: Model, timesteps: tuple[int, ...], device: str, processes: Processes
    ):  # fmt: skip
        self._settings, self._data, self._model, self._timesteps = settings, data, model, timesteps
        self._device, self._processes = device, processes
        self.texts = [text for p in settings.prompts for text in (p.target, p.positive, p.unconditional, p.neutral)]

    def steps(self, network: AdaptorNetwork, embeds: dict[str, PromptEmbeds]) -> Steps:
        settings, count = self._settings, self._settings.train.max_denoising_steps
        path = tuple(timestep_of(k, count) for k in range(count))
        timesteps = unmeasured(self._timesteps, settings.train)
        draw = TextDraws(settings.train.seed, settings.prompts, self._data.scales, timesteps, self._processes.count)
        return Steps(
            draw, TextBatchMaker(self._model, network, settings.prompts, embeds, path, self._device), timesteps
        )


class Kind(NamedTuple):
    """A kind of `Settings.data`. find: settings and the multiple of px of a training size → checked data, or InputError."""

    find: Callable[[Settings, int], Checked]
    source: type[Source]


SOURCES = {"images": Kind(find_images, ImageSource), "text": Kind(find_range, TextSource)}
