"""The numbers that a card derives from its readings."""

from dataclasses import replace

import pytest
from sliders.report.card import Card
from sliders.report.summary import best_first, measured, sentence, table, web_ui_lines

CARD = Card(
    scales=(0.5, 1.0, 2.0),
    multipliers=(-1.0, 0.0, 0.5, 1.0, 2.0, 4.0),
    readings=((-0.5, 0.0, 0.2, 0.5, 1.0, 2.0), (-0.5, 0.0, 0.3, 0.5, 1.0, 2.0)),
    ruler_error=0.05,
    order=(1.0, 0.9),
    roughness=(0.1, 0.3),
    foreign=(0.2, 0.0, 0.1, 0.2, 0.3, 0.5),
    foreign_in_folders=0.25,
    recognised=(1.0, 1.0, 1.0, 1.0, 0.75, 0.5),
    images=6,
)


def test_calibration_is_the_mean_distance_from_the_scales():
    assert CARD.calibration == pytest.approx((0.25 + 0.5 + 1.0) / 3)


def test_its_doubt_is_the_standard_error_of_the_curve():
    assert CARD.doubt == pytest.approx((0.05 + 0 + 0) / 3)  # 0.2 and 0.3 at 0.5: half their distance
    assert replace(CARD, readings=CARD.readings[:1]).doubt == 0.0


def test_the_factor_brings_a_slider_of_half_the_strength_to_its_scales():
    factor = CARD.factor()
    assert factor == pytest.approx(2.0, rel=0.01)
    assert CARD.calibration_with(factor) < 0.01
    assert CARD.with_factor(factor).calibration == pytest.approx(CARD.calibration_with(factor), abs=1e-9)


def test_a_factor_never_reaches_beyond_what_was_measured():
    weak = replace(CARD, readings=((-0.1, 0.0, 0.05, 0.1, 0.2, 0.4),))
    assert weak.factor() <= 2.0


def test_the_usable_range_is_where_pictures_are_recognised():
    assert CARD.usable == (-1.0, 2.0)
    assert replace(CARD, recognised=None).usable == (-1.0, 4.0)
    assert replace(CARD, recognised=(0.0,) * 6).usable == (0.0, 0.0)


def test_pictures_that_have_become_others_make_a_slider_worse():
    broken = replace(CARD.with_factor(2.0), foreign=(1.0, 0.0, 0.5, 0.9, 1.0, 1.2))
    assert (CARD.lost, broken.lost) == ((), (0.5, 1.0, 2.0))
    assert broken.calibration < CARD.calibration
    assert [line.split()[0] for line in table({"broken": broken, "weak": CARD}).splitlines()] == [
        "slider",
        "weak",
        "broken",
    ]
    assert "unsure" in table({"broken": broken})


def test_a_slider_whose_pictures_are_all_the_same_changes_nothing():
    """Even if it shows the middle of the scales, nearer to each of them than a weak slider is."""
    still = replace(CARD, readings=((1.0,) * 6, (1.2, 1.2, 1.201, 1.2, 1.2, 1.2)))
    assert (still.still, CARD.still) == (True, False)
    assert still.calibration < CARD.calibration
    assert list(best_first({"still": still, "weak": CARD})) == ["weak", "still"]
    assert "changes nothing" in table({"still": still})
    assert sentence(still).endswith("on average); weak: the slider changes nothing.")
    assert "changes nothing" in measured("a", still).rows[1][1]
    assert not replace(still, readings=(still.readings[0], CARD.readings[0])).still


def test_long_names_take_several_lines_of_the_table():
    name = "x" * 200 + "_last"
    lines = table({name: CARD, "short": CARD.with_factor(2.0)}).splitlines()
    assert max(map(len, lines)) < 120
    assert lines[1].split()[0] == "short"
    assert "".join(line.split()[0] for line in lines[2:]) == name


def test_a_card_survives_its_text_to_four_digits():
    again = Card.from_json(CARD.as_json())
    assert again == replace(CARD)
    assert Card.from_json(replace(CARD, ruler_error=1 / 3).as_json()).ruler_error == 0.3333


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", "no JSON", '{"calibration": 1, "usable": [0, 1], "readings": []}']
)
def test_other_text_is_no_card(text):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Card.from_json(text)


def test_texts_for_web_uis_cover_the_usable_range():
    dynamic, plot = (text for _, text in web_ui_lines("a", CARD))
    assert dynamic == "{<lora:a:0>|<lora:a:-1>|<lora:a:0.5>|<lora:a:1>|<lora:a:2>}"
    assert plot == "<lora:a:0>, <lora:a:-1>, <lora:a:0.5>, <lora:a:1>, <lora:a:2>"


def test_the_sentence_and_the_table_say_what_was_measured():
    assert sentence(CARD) == (
        "Measured on 2 rows of pictures: at 0.5 / 1 / 2 they show 0.25 / 0.50 / 1.00 (off by 0.58 ± 0.02 on average); "
        "weak: with its weights times 2 it would be off by 0.00."
    )
    better = CARD.with_factor(1.9)
    assert sentence(better).endswith("on average); good; usable from -0.526316 to 1.05263.")
    lines = table({"weak": CARD, "strong": better}).splitlines()
    assert [line.split()[0] for line in lines] == ["slider", "strong", "weak"]
    assert measured("a", CARD).chart.wanted == [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0)]
