"""Runs the sample command: pictures for all prompts, seeds and multipliers, a grid per prompt, and one HTML page."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sliders.compute.device import use_device
from sliders.formats.cards import keep_card
from sliders.report.grids import to_picture, to_pictures
from sliders.report.learned_measures import ClipScore, Lpips
from sliders.report.measures import MEASURES
from sliders.report.page import Page, write_page
from sliders.report.sections import section
from sliders.report.summary import measured
from sliders.sample.output import PAGE, Output
from sliders.sample.plan import SamplePlan, make_plan
from sliders.sample.settings import PLACES, SampleSettings
from sliders.sample.studio import Studio
from sliders.system.errors import InputError, places_renamed

Measure = Callable[..., float]  # (picture, the same picture at multiplier 0, prompt=text) → change


def run(settings: SampleSettings) -> Path:
    """Samples everything and returns the path of the page. Pictures are written as they are made, the page at the end.

    Raises InputError for wrong settings, and if the GPU has no memory for even one picture.
    """
    with planned(settings) as (plan,):
        return _run(settings, plan)


def _alone(settings: SampleSettings) -> list[SamplePlan]:
    return [make_plan(settings)]


@contextmanager
def planned(
    settings: SampleSettings, plan_all: Callable[[SampleSettings], list[SamplePlan]] = _alone
) -> Iterator[list[SamplePlan]]:
    """The plans of a command, for whose pictures everything is ready. plan_all: makes and checks them.

    Errors name the command's flags.
    """
    with places_renamed(PLACES):
        plans = plan_all(settings)
        with _ready(plans):
            yield plans


@contextmanager
def _ready(plans: Sequence[SamplePlan]) -> Iterator[None]:
    """Says what is worth saying before a model is loaded, and makes advice of a GPU's lack of memory."""
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        print(f"note: {note}", flush=True)
    plan = plans[0]
    use_device(plan.device)
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = f"{plan.sampling.width} × {plan.sampling.height} px"
        raise InputError(
            f"--device: the GPU has too little free memory for even one picture of {size}: lower --width and --height, "
            "or close other programs that use the GPU."
        ) from error


def _run(settings: SampleSettings, plan: SamplePlan) -> Path:
    measures = _measures(settings, plan.device)
    studio = Studio(settings, [plan])
    output = Output(settings, plan, studio.model, settings.out)
    seeds = [f"seed {seed}" for seed in settings.seeds]
    sections, sweeps, cards = [], [], []
    for group, pictures in studio.pictures(plan):
        output.save(group, pictures)
        changes = {title: partial(measure, prompt=group.text) for title, measure in measures.items()}
        sections.append(section(group.title, group.multipliers, seeds, pictures, changes))
        if plan.measured_by is not None:
            sweeps += to_pictures(pictures)
    slider, sampling = settings.slider[0], plan.sampling
    if plan.measured_by is not None:
        card = studio.card(plan, sweeps)
        cards = [measured(slider.stem, card)]
        keep_card(slider, card, plan.beside)
    title, footer = f"Slider {slider.stem}", _footer(settings)
    path = settings.out / PAGE
    write_page(path, Page(title, sampling.width, sampling.height, sections, output.facts(), footer, cards))
    return path


def _measures(settings: SampleSettings, device: str) -> dict[str, Measure]:
    """{title: measure} of all measures that the settings ask for."""

    def without_prompt(measure: Callable[[Tensor, Tensor], float]) -> Measure:
        return lambda picture, base, prompt: measure(picture, base)

    found = {title: without_prompt(measure) for title, measure in MEASURES.items()}
    if settings.clip is not None:
        score, fixed = ClipScore(settings.clip, device), settings.clip_text

        def increase(picture: Tensor, base: Tensor, prompt: str) -> float:
            text = prompt if fixed is None else fixed
            return score(to_picture(picture), text) - score(to_picture(base), text)

        found["ΔCLIP"] = increase
    if settings.lpips:
        found["LPIPS"] = without_prompt(Lpips(device))
    return found


def _footer(settings: SampleSettings) -> str:
    return f"ΔCLIP is the increase in CLIP score ({settings.clip})." if settings.clip else ""
