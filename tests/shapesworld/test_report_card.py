"""The report card on pictures whose truth is known, because they are rendered: it must read the radius that they show."""

from dataclasses import replace

import pytest
import torch
from shapesworld.attributes import ATTRIBUTES, evaluation_scenes
from shapesworld.evaluate import SHAPES
from shapesworld.world import render
from sliders.report.grids import to_picture
from worlds.check_card import Check

SIZE = ATTRIBUTES["size"]
MULTIPLIERS = (0.0, 0.67, 1.0, 1.15, 1.3, 1.65, 2.0, 4.0)


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    return Check(SHAPES, "size", tmp_path_factory.mktemp("folders"), scenes=24, device="cpu")


def card_of(check, shown):
    """Of a perfect slider that shows `shown(m)` at multiplier m, for captions that the folders do not have."""
    scenes = evaluation_scenes("size")
    columns = []
    for multiplier in MULTIPLIERS:
        wanted = torch.full_like(scenes.radius, SIZE.at_scale(shown(multiplier)))
        columns.append([to_picture(image) for image in render(replace(scenes, radius=wanted))])
    return check.yardstick.measure([list(row) for row in zip(*columns, strict=True)], MULTIPLIERS)


def test_it_reads_every_scale_between_the_folders(check):
    card = card_of(check, lambda m: m)
    truth = torch.tensor(MULTIPLIERS[1:7], dtype=torch.float64).repeat(len(card.readings), 1)
    readings = torch.tensor(card.readings, dtype=torch.float64)[:, 1:7]
    assert torch.corrcoef(torch.stack([truth.flatten(), readings.flatten()]))[0, 1] >= 0.93
    assert (truth - readings).abs().mean() <= 0.15
    assert card.calibration <= 0.1
    assert sum(card.order) / len(card.order) > 0.95


def test_it_finds_the_factor_of_a_slider_of_half_the_strength(check):
    card = card_of(check, lambda m: m / 2)
    assert card.calibration > 0.4
    assert card.factor() == pytest.approx(2.0, rel=0.15)
    assert card.calibration_with(card.factor()) < card.calibration / 2


def test_a_slider_without_effect_is_off_by_all_of_it(check):
    card = card_of(check, lambda m: 1.0)
    assert card.calibration == pytest.approx(sum(abs(s - 1) for s in SIZE.scales) / 4, abs=0.1)
