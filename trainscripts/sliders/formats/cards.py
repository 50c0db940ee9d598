"""The report card in a slider's file: stored, read again, and folded into the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sliders.adaptors import ALGORITHMS
from sliders.formats.sidecar import add_to_notes
from sliders.formats.slider_file import add_metadata, check_slider, save_slider
from sliders.formats.spelling import by_key
from sliders.models import Family
from sliders.models.layers import reachable_layers
from sliders.report.card import Card
from sliders.report.summary import MEASURED, sentence
from sliders.report.verdict import verdict
from sliders.system.errors import InputError

CARD = "sliders.card"  # in the metadata


def keep_card(slider: Path, card: Card, beside: Sequence[str] = ()) -> None:
    """Prints the card in a sentence and what to do next. Writes it into the slider's metadata, and its sidecar's notes if it has one.

    beside: LoRAs, as tags, that changed the pictures as well: then nothing is written, because the card is not the slider's
    alone. A file that cannot be written is a warning: the pictures and the page are worth more.
    """
    if beside:
        print(f"{slider.stem} beside {' '.join(beside)}, so not kept in its file: {sentence(card)}", flush=True)
        return
    print(f"{slider.stem}: {sentence(card)}", flush=True)
    if advice := verdict(card).advice:
        print(f"next    {advice}", flush=True)
    try:
        add_metadata(slider, {CARD: card.as_json()})
        add_to_notes(slider, MEASURED, sentence(card))
    except OSError as error:
        print(f"warning: {slider}: the report card could not be written into the file ({error.strerror or error}).")


def read_card(metadata: dict[str, str]) -> Card | None:
    """The card in a slider's metadata, None if it has none or one of another version."""
    text = metadata.get(CARD)
    try:
        return None if text is None else Card.from_json(text)
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Calibration:
    """What a factor on all weights does to a slider's calibration, as its card predicts it."""

    factor: float
    before: float  # mean error at the folders' scales
    after: float  # what remains: how far the slider is from linear


def calibrate(source: Path, target: Path, model: str, family: Family) -> Calibration:
    """Writes to `target` the slider with the factor of its card folded into its weights, and the card to match.

    model: the one that it is for, of which no weights are loaded. Raises InputError if the slider has no card, or one that
    no factor can improve.
    """
    denoiser = family.weightless_denoiser(model)
    slider = check_slider(source, denoiser, family)
    if slider.changes_nothing:
        raise InputError(
            f"{source}: changes nothing, because all its weights are zero, so no factor can calibrate it: train it for longer."
        )
    card = read_card(slider.metadata)
    if card is None:
        raise InputError(
            f"{source}: has no report card to calibrate by: measure it first with sample_slider-xl.py --card, or with "
            "sample_slider.py --card if it is for Stable Diffusion."
        )
    if card.shown_at(card.scales[-1:])[0] <= card.shown_at(card.scales[:1])[0]:
        raise InputError(
            f"{source}: its pictures do not show more at {card.scales[-1]:g} than at {card.scales[0]:g}, so no factor can calibrate "
            "it: train it for longer."
        )
    factor = card.factor()
    algorithm = ALGORITHMS[slider.network.algo]
    layers = {family.file_key(path): layer for path, layer in reachable_layers(denoiser).items()}
    scaled = {m: algorithm.for_files(algorithm.scaled(parts, factor), layers[m]) for m, parts in slider.modules.items()}
    calibrated = card.with_factor(factor)
    own = {CARD: calibrated.as_json(), "ss_output_name": target.stem, "sliders.calibrated_by": repr(factor)}
    save_slider(target, by_key(scaled, family), {**slider.metadata, **own}, family)
    return Calibration(factor, card.calibration, calibrated.calibration)
