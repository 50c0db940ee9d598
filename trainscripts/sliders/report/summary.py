"""A card in words: for the page, the console, and the description that web UIs show."""

import textwrap

import numpy as np

from sliders.report.card import RECOGNISED, Card
from sliders.report.page import Chart, Measured
from sliders.report.verdict import verdict
from sliders.report.web_ui import multiplier_list, multiplier_template

MEASURED = "Measured on "  # how the sentence starts
NAME_WIDTH = 40  # characters


def measured(title: str, card: Card) -> Measured:
    """The card of the slider `title`, the name by which a prompt calls it."""
    chart = Chart(
        "perceived scale (rings: the folders' scales)", card.multipliers, card.readings, [(s, s) for s in card.scales]
    )
    return Measured(title, chart, _rows(card), web_ui_lines(title, card))


def _rows(card: Card) -> list[tuple[str, str, str]]:
    low, high = card.usable
    order, top, found = sum(card.order) / len(card.order), max(card.scales, key=abs), verdict(card)
    return [
        ("verdict", found.word, "; next: ".join(part for part in (found.why, found.advice) if part)),
        (
            "calibration",
            f"off by {card.calibration:.2f} ± {card.doubt:.2f}"
            + (", changes nothing" if card.still else ", unsure" if card.lost else ""),
            f"between what the pictures show at the folders' scales and those scales, on average (±: standard error of the rows' "
            f"mean); the ruler errs by {card.ruler_error:.2f} on single images of the folders" + _lost(card),
        ),
        (
            "monotone",
            f"{order:.2f}",
            f"rank correlation of multiplier and perceived scale, mean of {len(card.order)} rows (lowest: {min(card.order):.2f}); "
            "1 if each picture shows more than the one before",
        ),
        (
            "smoothness",
            f"{sum(card.roughness) / len(card.roughness):.2f}",
            "largest detour over three neighbouring pictures, in distances between two scenes; 0 is a straight line",
        ),
        (
            "preservation",
            f"{np.interp(top, card.multipliers, card.foreign):.2f}",
            f"change at {top:g} that the folders do not show, in distances between two scenes; between the "
            f"folders' own images it is {card.foreign_in_folders:.2f}",
        ),
        (
            "range",
            f"{low:g} to {high:g}",
            "of a single row, which cannot be mistaken for another"
            if card.recognised is None
            else f"multipliers at which at least {RECOGNISED:.0%} of the pictures look more like their own row than like another prompt's",
        ),
    ]  # fmt: skip


def _lost(card: Card) -> str:
    scales = " / ".join(f"{scale:g}" for scale in card.lost)
    return f"; unsure, because at {scales} the pictures have become others (see preservation)" if scales else ""


def sentence(card: Card) -> str:
    """What the slider's pictures show, for its description in web UIs."""
    scales = " / ".join(f"{scale:g}" for scale in card.scales)
    shown = " / ".join(f"{value:.2f}" for value in card.shown_at(card.scales))
    low, high = card.usable
    found = verdict(card)
    use = f"{found}; usable from {low:g} to {high:g}" if found.is_usable else f"{found}"
    return (
        f"{MEASURED}{len(card.readings)} rows of pictures: at {scales} they show {shown} (off by {card.calibration:.2f} ± "
        f"{card.doubt:.2f} on average); {use}."
    )


def best_first(cards: dict[str, Card]) -> dict[str, Card]:
    """{slider: card} in the order of `Card.rank`."""
    return dict(sorted(cards.items(), key=lambda item: item[1].rank))


def table(cards: dict[str, Card]) -> str:
    """{slider: card} → a table as text, best first. Long names take several lines."""
    rows = [("slider", *(name for name, _, _ in _rows(next(iter(cards.values())))))]
    for slider, card in best_first(cards).items():
        first, *rest = textwrap.wrap(slider, NAME_WIDTH) or [slider]
        rows.append((first, *(value for _, value, _ in _rows(card))))
        rows += [(line, *[""] * (len(rows[0]) - 1)) for line in rest]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def web_ui_lines(name: str, card: Card) -> list[tuple[str, str]]:
    """Texts that show the slider over its usable range: for Dynamic Prompts, and for the X/Y/Z plot script."""
    low, high = card.usable
    multipliers = [m for m in card.multipliers if low <= m <= high]
    return [
        ("Dynamic Prompts, combinatorial generation, fixed seed:", multiplier_template(name, multipliers)),
        (f"X/Y/Z plot, Prompt S/R, with <lora:{name}:0> in the prompt:", multiplier_list(name, multipliers)),
    ]
