"""Runs the compare command: several sliders under the same prompts, seeds and multipliers, on one page and in one table."""

from pathlib import Path

from sliders.formats.cards import keep_card
from sliders.report.card import Card
from sliders.report.grids import to_pictures
from sliders.report.page import Page, Section, Shot, write_page
from sliders.report.sections import shots
from sliders.report.summary import best_first, measured, table
from sliders.sample.output import PAGE, Output
from sliders.sample.plan import SamplePlan, known_sliders, make_plan
from sliders.sample.run import planned
from sliders.sample.settings import SampleSettings
from sliders.sample.studio import Studio
from sliders.system.errors import InputError


def compare(settings: SampleSettings) -> Path:
    """Samples all sliders, prints a table if they are measured, and returns the path of the page.

    The pictures of each slider go into a folder of its name. Raises InputError for wrong settings.
    """
    with planned(settings, _plans) as plans:
        return _compare(settings, plans)


def _compare(settings: SampleSettings, plans: list[SamplePlan]) -> Path:
    studio = Studio(settings, plans)
    cards: dict[str, Card] = {}
    rows: dict[str, list[list[Shot]]] = {}  # of each slider, one list for each group
    for path, plan in zip(settings.slider, plans, strict=True):
        output = Output(settings, plan, studio.model, settings.out / path.stem)
        sweeps, rows[path.stem] = [], []
        for group, pictures in studio.pictures(plan):
            output.save(group, pictures)
            rows[path.stem].append(shots([f"{path.stem}, seed {seed}" for seed in settings.seeds], pictures))
            if plan.measured_by is not None:
                sweeps += to_pictures(pictures)
        if plan.measured_by is not None:
            cards[path.stem] = studio.card(plan, sweeps)
            keep_card(path, cards[path.stem], plan.beside)
    cards = best_first(cards)
    if cards:
        print(table(cards))
    groups, sampling = plans[0].groups, plans[0].sampling
    ordered = [rows[name] for name in cards or rows]
    sections = [
        Section(group.text, group.multipliers, [shot for own in ordered for shot in own[number]])
        for number, group in enumerate(groups)
    ]
    blocks = [measured(name, card) for name, card in cards.items()]
    path = settings.out / PAGE
    write_page(
        path, Page("Sliders side by side", sampling.width, sampling.height, sections, output.facts(), "", blocks)
    )
    return path


def _plans(settings: SampleSettings) -> list[SamplePlan]:
    """One for each slider, all with the same groups of pictures."""
    known_sliders(settings)  # refuses two of one name
    alone = [settings.model_copy(update={"slider": (path,)}) for path in settings.slider]
    plans = [make_plan(one) for one in alone]
    if len({tuple(group.multipliers for group in plan.groups) for plan in plans}) > 1:
        together = tuple(sorted({m for plan in plans for group in plan.groups for m in group.multipliers}))
        plans = [make_plan(one.model_copy(update={"multipliers": together})) for one in alone]
    first = plans[0]
    for path, plan in zip(settings.slider, plans, strict=True):
        if plan.sampling != first.sampling:
            raise InputError(
                f"{path}: was trained at {plan.sampling.width} × {plan.sampling.height} px, {settings.slider[0].name} at "
                f"{first.sampling.width} × {first.sampling.height}: add --width and --height."
            )
    return plans
