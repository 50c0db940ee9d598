"""What a card says of its slider in one word, why, and what to do next. The thresholds of all verdicts are here."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sliders.report.card import Card

WEAK = 0.6  # of the change between the folders, by the slope of the shown scales: a slider that shows less is weak
STRONG = 1 / WEAK  # one that shows more is strong
VISIBLE = 0.15  # of the same: below it, no factor would do, because the slider has hardly learnt anything
BLIND = 0.5  # the ruler's error on the folders' images, over that of reading the mean scale in all: above it, it reads too little
UNCHANGED = 0.1  # foreign change, in distances between two scenes, below which even a blind ruler misses nothing
UNEVEN = 0.5  # standard deviation over mean of the slopes between neighbouring scales
OFF = 0.25  # calibration, of the distance between the lowest and the highest scale
MENDED = 0.5  # share of a calibration that a factor on the weights must leave at most, for it to be worth while


@dataclass(frozen=True)
class Verdict:
    word: str  # good, weak, strong, uneven, broken or unsure
    why: str
    advice: str  # what to do next; empty if nothing

    @property
    def is_usable(self) -> bool:
        """Whether a range of multipliers is worth naming."""
        return self.word not in ("weak", "broken", "unsure")

    def __str__(self) -> str:
        return f"{self.word}: {self.why}" if self.why else self.word


def verdict(card: Card) -> Verdict:
    """The first that holds of: pictures lost, nothing changed, unsure, the wrong way, weak or strong, uneven; otherwise good."""
    for look in (_lost, _unchanged, _unsure, _reversed, _weak_or_strong, _uneven):
        if (found := look(card)) is not None:
            return found
    return Verdict("good", "", "")


def _lost(card: Card) -> Verdict | None:
    if not card.lost:
        return None
    why = f"at {' / '.join(f'{scale:g}' for scale in card.lost)} the pictures have become others"
    return Verdict("broken", why, "train with fewer steps or a lower lr, and check the captions")


def _unchanged(card: Card) -> Verdict | None:
    foreign = np.interp(card.scales, card.multipliers, card.foreign)
    if card.still:
        why = "the slider changes nothing"
    elif abs(strength(card)) < VISIBLE and (blindness(card) <= BLIND or foreign.max() < UNCHANGED):
        why = _shows(card)
    else:
        return None
    return Verdict("weak", why, "train it for longer, or with a higher rank or lr")


def _unsure(card: Card) -> Verdict | None:
    if blindness(card) <= BLIND:
        return None
    why = f"the ruler errs by {card.ruler_error:.2f} on the folders' own images"
    return Verdict("unsure", why, "look at the pictures, or measure by more images and scenes")


def _reversed(card: Card) -> Verdict | None:
    if strength(card) > 0:
        return None
    why = f"it shows less at {card.scales[-1]:g} than at {card.scales[0]:g}"
    return Verdict("broken", why, "check which scale each folder has")


def _shows(card: Card) -> str:
    return f"it shows {max(strength(card), 0.0):.0%} of what the folders do"


def _weak_or_strong(card: Card) -> Verdict | None:
    slope, factor, shows = strength(card), card.factor(), _shows(card)
    after = card.calibration_with(factor)
    if card.calibration > _tolerance(card) and after <= MENDED * card.calibration:
        shows = f"with its weights times {factor:.2g} it would be off by {after:.2f}"
    elif WEAK <= slope <= STRONG:
        return None
    else:
        factor = 1 / slope
    calibrate = "use convert_slider.py --calibrate"
    return (
        Verdict("weak", shows, f"train it for longer, or {calibrate}")
        if factor > 1
        else Verdict("strong", shows, calibrate)
    )


def _uneven(card: Card) -> Verdict | None:
    if unevenness(card) > UNEVEN:
        slopes = _slopes(card).mean(0)
        why = f"its steps are {slopes.min():.2g} to {slopes.max():.2g} times as large as the folders'"
    elif card.calibration > _tolerance(card):
        why = "its steps are even, but lie elsewhere"
    else:
        return None
    scales = ", ".join(f"{scale:g}" for scale in card.scales)
    anew = f"train anew on a ladder of its own pictures: the sample command's --ladder DIR --shows {scales}"
    return Verdict("uneven", why, anew)


def _tolerance(card: Card) -> float:
    """The largest calibration of a good slider."""
    return OFF * (card.scales[-1] - card.scales[0])


def blindness(card: Card) -> float:
    """The ruler's error on images of scenes that it was not fitted on, over that of reading the mean scale in all of them."""
    scales = np.array(card.scales)
    return card.ruler_error / float(np.abs(scales - scales.mean()).mean())


def strength(card: Card) -> float:
    """The slope of the shown scales over the folders' scales, by least squares: 1 if it changes as much as the folders do."""
    return float(np.polyfit(card.scales, card.shown_at(card.scales), 1)[0])


def unevenness(card: Card) -> float:
    """Standard deviation over mean of the slopes between neighbouring scales, in the mean over the rows; 0 for two scales.

    Rows differ: the part of the variance that the slopes' standard errors explain is taken off.
    """
    slopes = _slopes(card)
    mean = slopes.mean(0)
    noise = slopes.var(0, ddof=1).mean() / len(slopes) if len(slopes) > 1 else 0.0
    return float(max(mean.var() - noise, 0.0) ** 0.5 / max(abs(mean.mean()), 1e-9))


def _slopes(card: Card) -> np.ndarray:
    """By how much the shown scale rises between neighbouring scales, over their distance: [rows, scales − 1]."""
    shown = np.array([np.interp(card.scales, card.multipliers, row) for row in card.readings])
    return np.diff(shown, axis=1) / [b - a for a, b in pairwise(card.scales)]
