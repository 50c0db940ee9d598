"""Previews of a slider: a grid of pictures with one prompt and seed per row and one multiplier per column."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sliders.adaptors.network import AdaptorNetwork
from sliders.config.families import Pictures
from sliders.config.schema import Preview, Settings
from sliders.data.contract import Checked
from sliders.data.dataset import ScaleFolders
from sliders.fast.path import vae_on
from sliders.models.base import Model, PromptEmbeds
from sliders.report.card import Card
from sliders.report.grids import labelled_grid, to_pictures
from sliders.report.measures import MEASURES
from sliders.report.page import Page, multiplier_label
from sliders.report.sections import section
from sliders.report.summary import measured
from sliders.report.yardstick import FEWEST_SCENES, Yardstick
from sliders.sample.sampling import Row, Sampling, rows_within, sample
from sliders.system.errors import InputError
from sliders.system.progress import progress


def preview_multipliers(scales: Sequence[float]) -> tuple[float, ...]:
    """0, the scales, and one multiplier beyond: the highest scale plus its distance to the second highest.

    scales: ascending, at least two.
    """
    beyond = round(2 * scales[-1] - scales[-2], 6)
    return tuple(sorted({0.0, *scales, beyond}))


def completed(multipliers: Sequence[float], needed: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`multipliers`, each once, followed by those of `needed` that are missing; and the latter alone."""
    found = {multiplier_label(m): m for m in multipliers}
    missing = tuple(m for m in needed if multiplier_label(m) not in found)
    found |= {multiplier_label(m): m for m in needed}  # which are exact
    return tuple(found.values()), missing


def needed_on_page(data: Checked) -> tuple[float, ...]:
    """The multipliers that the page at the end of a run needs: 0, and for a report card the folders' scales."""
    return (0.0, *data.scales) if can_measure(data) else (0.0,)


def can_measure(data: Checked) -> bool:
    """Whether a run on this data ends with a report card."""
    return isinstance(data, ScaleFolders) and len(data.names) >= FEWEST_SCENES


def preview_remarks(preview: Preview, data: Checked) -> Iterator[str]:
    """What a plan says about previews that is allowed, but perhaps not meant."""
    if not preview.prompts:
        return
    if isinstance(data, ScaleFolders) and not can_measure(data):
        yield (
            f"preview: the page at the end has no report card, which needs at least {FEWEST_SCENES} names of images: add images."
        )
    _, missing = completed(preview.multipliers or preview_multipliers(data.scales), needed_on_page(data))
    if missing:
        shown = ", ".join(map(multiplier_label, missing))
        why = "its report card needs 0 and every scale" if can_measure(data) else "it compares with 0"
        yield f"preview.multipliers: the page at the end also shows {shown}, because {why}."


def sample_grid(
    model: Model,
    network: AdaptorNetwork | None,
    prompts: Sequence[tuple[PromptEmbeds, int]],
    negative: PromptEmbeds,
    multipliers: Sequence[float],
    sampling: Sampling,
) -> Tensor:
    """Pictures [prompts, multipliers, 3, H, W] in [0, 1], float32 on the CPU.

    prompts: (embeddings, seed) pairs. network: None samples the base model. Raises torch.OutOfMemoryError.
    Shows its progress.
    """
    networks = [] if network is None else [network]
    rows = [Row(embeds, seed, (m,)) for embeds, seed in prompts for m in multipliers]
    made = sample(model, networks, rows, negative, sampling)
    pictures = torch.stack(list(progress(made, "pictures", len(rows))))
    return pictures.view(len(prompts), len(multipliers), *pictures.shape[1:])


def preview_sampling(
    width: int, height: int, steps: int, guidance: float, decode_on_cpu: bool = True, cuda_graph: bool = True
) -> Sampling:
    """Sampling in batches that fit beside training: at 1024 px one picture, which with guidance is two UNet rows."""
    rows = rows_within(1024**2, width, height)
    return Sampling(width, height, steps, guidance, batch_size=rows, cuda_graph=cuda_graph, decode_on_cpu=decode_on_cpu)


class Previews:
    """Shows a slider in training: `preview.prompts` in rows, multipliers in columns, at the size of the first prompt set.

    At the end, further rows and columns are added for the page and its report card.
    """

    def __init__(
        self, settings: Settings, data: Checked, model: Model, network: AdaptorNetwork, embeds: dict[str, PromptEmbeds],
        device: str,
    ):  # fmt: skip
        """embeds: of the prompts and of the empty one."""
        self._settings, self._data, self._model, self._network = settings, data, model, network
        self._embeds, self._device = embeds, device
        self._shown, _ = completed(settings.preview.multipliers or preview_multipliers(data.scales), ())
        self._multipliers, _ = completed(self._shown, needed_on_page(data))
        self._size = data.fitted_size(0, settings.prompts[0].resolution)
        model.check_sampling("preview.prompts", "remove them, and make pictures with the sample command's --sampler")

    def pictures(self, last: bool = False, decode_on_cpu: bool = True) -> Tensor:
        """[rows, multipliers, 3, H, W] in [0, 1], float32 on the CPU: what `grid` shows, for the last also what `page` does.

        Rows are the prompts, as often as there are seeds. Raises torch.OutOfMemoryError.
        """
        settings, other, embeds = self._settings.preview, self._settings.other, self._embeds
        rows = settings.prompts * (settings.seeds if last else 1)
        jobs = [(embeds[prompt], settings.seed + row) for row, prompt in enumerate(rows)]
        multipliers = self._multipliers if last else self._shown
        guidance = settings.guidance or self._usual_guidance()
        graph = other.cuda_graph != "off" and other.torch_compile != "full"  # which would compile the capture itself
        sampling = preview_sampling(*self._size, self._steps, guidance, decode_on_cpu, graph)
        with sampling_from(self._model, self._network, self._device):
            negative = self._model.negative("", embeds)
            return sample_grid(self._model, self._network, jobs, negative, multipliers, sampling)

    @property
    def _steps(self) -> int:
        return self._settings.preview.steps or self._usual.steps

    @property
    def _usual(self) -> Pictures:
        return self._model.facts.pictures_of(self._model.distilled)

    def _usual_guidance(self) -> float:
        """What the first prompt set says, or what the model is usually sampled with."""
        first = self._settings.prompts[0]
        return first.guidance_scale if "guidance_scale" in first.model_fields_set else self._usual.preview_guidance

    def grid(self, pictures: Tensor) -> Image.Image:
        """The first row of each prompt, at the multipliers that the settings ask for, as one labelled picture."""
        prompts, labels = self._settings.preview.prompts, [multiplier_label(m) for m in self._shown]
        return labelled_grid(pictures[: len(prompts), : len(labels)], prompts, labels)

    def page(self, stem: str, pictures: Tensor) -> tuple[Page, Card | None]:
        """The page of the last `pictures`, and the slider's report card; stem: the name by which a prompt calls it.

        No card without folders to measure by, or if it cannot be made.
        """
        settings, multipliers = self._settings.preview, sorted(self._multipliers)
        pictures = pictures[:, [self._multipliers.index(m) for m in multipliers]]
        card, every = self._card(pictures, multipliers), len(settings.prompts)
        sections = [
            section(
                prompt,
                multipliers,
                [f"seed {settings.seed + row}" for row in range(first, len(pictures), every)],
                pictures[first::every],
                MEASURES,
            )
            for first, prompt in enumerate(settings.prompts)
        ]
        width, height = self._size
        facts = {"size": f"{width} × {height} px", "sampler": f"{self._steps} steps"}
        return Page(f"Slider {stem}", width, height, sections, facts, "", [measured(stem, card)] if card else ()), card

    def _card(self, pictures: Tensor, multipliers: list[float]) -> Card | None:
        data = self._data
        if not can_measure(data):
            return None
        try:
            with sampling_from(self._model, self._network, self._device):
                self._network.set_multipliers(None)
                yardstick = Yardstick(self._model, data, self._size, self._embeds[""])
                prompts = [row % len(self._settings.preview.prompts) for row in range(len(pictures))]
                return yardstick.measure(to_pictures(pictures), multipliers, prompts)
        except torch.OutOfMemoryError:
            tqdm.write(
                "note: the GPU has no memory left for the report card; sample_slider-xl.py --card makes it afterwards."
            )
        except InputError as error:  # an image is gone, or was changed
            tqdm.write(f"note: no report card was made: {error}")
        return None


@contextmanager
def sampling_from(model: Model, network: AdaptorNetwork, device: str) -> Iterator[None]:
    """Prepares a model in training for sampling: VAE on `device`, a scheduler of its own. Restores everything on exit.

    Sampling uses its own random generators, so torch's random state is not affected.
    """
    scheduler, multipliers = model.scheduler, network.multipliers
    model.scheduler = type(scheduler).from_config(scheduler.config)
    try:
        with vae_on(model, device):
            yield
    finally:
        model.scheduler = scheduler
        network.set_multipliers(multipliers)
