"""The verdict on made-up curves, and that each threshold decides where it says it does."""

from dataclasses import replace

import pytest
from sliders.report.card import Card
from sliders.report.summary import measured, sentence
from sliders.report.verdict import (
    BLIND,
    OFF,
    STRONG,
    UNCHANGED,
    UNEVEN,
    VISIBLE,
    WEAK,
    blindness,
    strength,
    unevenness,
    verdict,
)

SCALES = (0.5, 1.0, 1.5, 2.0)


def card_showing(*shown: float, scales=SCALES, rows=1, **changes) -> Card:
    """A card whose curve shows these scales at the folders' scales, nothing at 0, and as much again beyond."""
    multipliers = tuple(sorted({-scales[-1], 0.0, *scales, 2 * scales[-1]}))
    at = {-scales[-1]: -shown[-1], 2 * scales[-1]: 2 * shown[-1], 0.0: 0.0} | dict(zip(scales, shown, strict=True))
    sweep = tuple(at[m] for m in multipliers)
    count = len(multipliers)
    card = Card(
        scales=scales, multipliers=multipliers, readings=(sweep,) * rows, ruler_error=0.05, order=(1.0,) * rows,
        roughness=(0.1,) * rows, foreign=(0.2,) * count, foreign_in_folders=0.2, recognised=(1.0,) * count, images=8,
    )  # fmt: skip
    return replace(card, **changes)


@pytest.mark.parametrize(
    ("shown", "word", "advice"),
    [
        (SCALES, "good", ""),
        ((0.45, 1.1, 1.4, 1.9), "good", ""),
        ((0.0, 0.0, 0.0, 0.0), "weak", "train it for longer"),
        ((0.02, 0.03, 0.05, 0.07), "weak", "train it for longer"),
        (
            (1.2, 1.21, 1.22, 1.24),
            "weak",
            "train it for longer",
        ),  # shows the middle of the scales, whatever the multiplier
        ((0.2, 0.4, 0.6, 0.8), "weak", "convert_slider.py --calibrate"),
        ((0.1, 0.2, 1.6, 1.9), "uneven", "--ladder DIR --shows 0.5, 1, 1.5, 2"),
        ((1.1, 1.6, 2.1, 2.6), "strong", "convert_slider.py --calibrate"),  # even steps; half the weights would do
        ((1.0, 2.0, 3.0, 4.0), "strong", "convert_slider.py --calibrate"),
        ((1.3, 1.25, 1.2, 1.15), "weak", "train it for longer"),
        ((2.0, 1.5, 1.0, 0.5), "broken", "check which scale each folder has"),
    ],
)
def test_a_curve_gets_its_word_and_the_next_step(shown, word, advice):
    found = verdict(card_showing(*shown))
    assert found.word == word
    assert advice in found.advice and bool(found.advice) == bool(advice)
    assert found.word in sentence(card_showing(*shown))
    assert measured("a", card_showing(*shown)).rows[0][1] == word


def test_a_slider_without_a_visible_effect_is_weak_and_never_usable():
    """Its pictures are all recognised, from −2 to 4, because they are all the same."""
    text = sentence(card_showing(0.01, 0.02, 0.03, 0.05))
    assert "usable" not in text and text.endswith("weak: it shows 3% of what the folders do.")
    assert sentence(card_showing(*SCALES)).endswith("good; usable from -2 to 4.")


def test_a_ruler_that_cannot_read_the_folders_says_nothing_of_a_slider():
    """The mean of the scales is 1.25, from which they are 0.5 away on average."""
    for error, word in ((0.5 * BLIND - 0.01, "good"), (0.5 * BLIND + 0.01, "unsure")):
        card = card_showing(*SCALES, ruler_error=error)
        assert blindness(card) == pytest.approx(error / 0.5)
        assert verdict(card).word == word
    assert "usable" not in sentence(card) and "errs by 0.26 on the folders' own images" in sentence(card)


@pytest.mark.parametrize(("foreign", "word"), [(UNCHANGED - 0.01, "weak"), (UNCHANGED + 0.01, "unsure")])
def test_even_then_pictures_that_hardly_change_are_weak(foreign, word):
    card = card_showing(0.01, 0.02, 0.03, 0.05, ruler_error=0.4)
    assert verdict(replace(card, foreign=(foreign,) * len(card.multipliers))).word == word


def test_pictures_that_have_become_others_are_broken_whatever_they_show():
    multipliers = card_showing(*SCALES).multipliers
    foreign = tuple(0.9 if m >= 2 else 0.3 for m in multipliers)
    found = verdict(card_showing(*SCALES, foreign=foreign))
    assert (found.word, found.why) == ("broken", "at 2 the pictures have become others")
    assert "usable" not in sentence(card_showing(*SCALES, foreign=foreign))


@pytest.mark.parametrize(("threshold", "below", "above"), [(WEAK, "weak", "good"), (STRONG, "good", "strong")])
def test_the_slope_decides_at_its_threshold(threshold, below, above):
    """Around the middle of the scales, so that the calibration stays small."""
    scales = (-1.0, -0.5, 0.5, 1.0)
    for slope, word in ((threshold - 0.01, below), (threshold + 0.01, above)):
        card = card_showing(*(slope * s for s in scales), scales=scales)
        assert strength(card) == pytest.approx(slope)
        assert verdict(card).word == word
    assert verdict(card_showing(*((VISIBLE - 0.01) * s for s in scales), scales=scales)).advice.startswith(
        "train it for"
    )


def test_the_spread_of_the_steps_decides_at_its_threshold():
    for spread, word in ((UNEVEN - 0.02, "good"), (UNEVEN + 0.02, "uneven")):
        first, second = 1 - spread, 1 + spread  # slopes of two steps: mean 1, standard deviation `spread`
        card = card_showing(-0.5 * first, 0.0, 0.5 * second, scales=(-0.5, 0.0, 0.5))
        assert (strength(card), unevenness(card)) == pytest.approx((1.0, spread))
        assert verdict(card).word == word


def test_steps_that_differ_only_by_the_rows_noise_are_not_uneven():
    """Four rows, each with steps of its own: their mean alone would be uneven, their standard error says that it need not be."""
    even = card_showing(*SCALES)
    jitter = ((0.0, 0.5, 0.0, -0.5), (0.0, 0.4, -0.6, 0.0), (0.0, -0.3, 0.5, 0.6), (0.0, 0.6, -0.6, -0.2))
    places = [even.multipliers.index(s) for s in SCALES]
    rows = []
    for noise in jitter:
        row = list(even.readings[0])
        for place, value in zip(places, noise, strict=True):
            row[place] += value
        rows.append(tuple(row))
    noisy = card_showing(*SCALES, readings=tuple(rows), order=(1.0,) * 4)
    alone = replace(noisy, readings=(tuple(noisy.curve),))
    assert unevenness(noisy) < unevenness(alone)
    assert verdict(noisy).word == "good"


def test_a_curve_off_by_more_than_its_share_is_not_good():
    """A shift alone: even steps of the right size, which no factor moves."""
    scales = (-1.0, -0.5, 0.5, 1.0)
    for shift, word in ((OFF * 2 - 0.02, "good"), (OFF * 2 + 0.02, "uneven")):
        found = verdict(card_showing(*(s + shift for s in scales), scales=scales))
        assert found.word == word
        assert ("lie elsewhere" in found.why) == (word == "uneven")
