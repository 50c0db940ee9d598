"""True pictures must measure as what they are, and a slider that moves the rest must be told from one that does not."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from emojiworld.attributes import ATTRIBUTES, at_scale, evaluation_scenes
from emojiworld.changes import blur
from emojiworld.distance import distance
from emojiworld.evaluate import MODEL
from emojiworld.looking import box, fitted_background, look, project
from emojiworld.world import backgrounds, render
from worlds.models import load_model, through_the_vae

# Of the means over held-out names, and of nine in ten pictures, in the attribute's unit. The mean error of frost is how the
# reading of style takes some of the ice for its own.
MEANS = {"skin": 0.15, "style": 0.06, "frost": 0.06, "hue": 5.0, "size": 0.8, "blur": 0.15}
SINGLE = {"skin": 0.2, "style": 0.25, "frost": 0.15, "hue": 12.0, "size": 1.5, "blur": 0.4}


def seen_at(world, name, scale, change=lambda pictures: pictures):
    attribute, scenes = ATTRIBUTES[name], evaluation_scenes(world.pictures, name)
    pictures = change(render(at_scale(scenes, name, scale), world.pictures))
    return look(pictures, scenes, world.pictures, attribute.field, attribute.read)


def check(world, name, scales):
    for scale in scales:
        values = seen_at(world, name, scale).values
        wanted = ATTRIBUTES[name].value(scale)
        assert abs(values.mean() - wanted) < MEANS[name], f"{wanted} reads as {values.mean():.3g} on average"
        assert (values - wanted).abs().quantile(0.9) < SINGLE[name], f"{wanted} reads as {values}"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_stand_ins_measure_as_what_they_are(stand_ins, name):
    check(stand_ins, name, ATTRIBUTES[name].scales[:: len(ATTRIBUTES[name].scales) - 1])


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_held_out_emoji_measure_as_what_they_are(emoji, name):
    check(emoji, name, ATTRIBUTES[name].scales)


@pytest.mark.parametrize("name", ["skin", "style"])
def test_held_out_emoji_are_read_through_the_vae(emoji, name):
    """Its haze around an emoji is not a part of it. The errors are those of single pictures."""
    vae, attribute = partial(through_the_vae, load_model(MODEL, "cpu")), ATTRIBUTES[name]
    for scale in attribute.scales:
        values, wanted = seen_at(emoji, name, scale, vae).values, attribute.value(scale)
        assert (values - wanted).abs().quantile(0.9) < 1.5 * SINGLE[name], f"{wanted} reads as {values}"


def softened(pictures):
    """As after a VAE: a little blurred, with a little noise."""
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return (blur(pictures, pictures[:, :1], torch.full((len(pictures),), 0.7)) + 0.01 * noise).clamp(0, 1)


@pytest.mark.parametrize("name", ["skin", "style", "frost", "hue", "size"])
def test_softened_pictures_measure_nearly_the_same(stand_ins, name):
    low, high = (
        seen_at(stand_ins, name, s, softened).values.mean() for s in (ATTRIBUTES[name].scales[i] for i in (0, -1))
    )
    wanted = [ATTRIBUTES[name].value(ATTRIBUTES[name].scales[i]) for i in (0, -1)]
    assert (high - low) / (wanted[1] - wanted[0]) == pytest.approx(1, abs=0.12)


def test_place_mirror_and_background_are_found(stand_ins):
    scenes = evaluation_scenes(stand_ins.pictures, "skin")
    pictures = render(scenes, stand_ins.pictures)
    assert (fitted_background(pictures) - backgrounds(scenes)).abs().max() < 0.05  # white, graded, is cut off at 1
    seen = seen_at(stand_ins, "skin", 0.0)
    for field in ("x", "y", "size"):
        assert (getattr(seen.scenes, field) - getattr(scenes, field)).abs().max() < 2
    assert (seen.scenes.mirror == scenes.mirror).float().mean() > 0.8  # some stand-ins are nearly symmetric


def test_an_empty_picture_shows_nothing(stand_ins):
    scenes = evaluation_scenes(stand_ins.pictures, "size")
    attribute = ATTRIBUTES["size"]
    seen = look(backgrounds(scenes), scenes, stand_ins.pictures, attribute.field, attribute.read)
    assert seen.values.isnan().all()
    assert box(torch.zeros(2, 1, 128, 128)).isnan().all()


def test_a_point_is_read_on_the_nearest_part_of_a_path_and_beyond_its_ends():
    path = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 2.0]]])  # a corner
    values = torch.tensor([0.0, 1.0, 3.0])
    for point, value in (((0.25, 0.1), 0.25), ((1.1, 1.0), 2.0), ((-1.0, 0.0), -1.0), ((1.0, 3.0), 4.0)):
        assert project(torch.tensor([point]), path, values).item() == pytest.approx(value)


def test_the_distance_grows_with_a_move_and_is_0_for_equal_pictures(stand_ins):
    scenes = evaluation_scenes(stand_ins.pictures, "size")
    still, near, far = (render(replace(scenes, x=scenes.x + move), stand_ins.pictures) for move in (0.0, 1.0, 4.0))
    assert distance(still, still).max() == 0
    assert (distance(still, near) > 0).all() and (distance(still, far) > distance(still, near)).all()


MULTIPLIERS = {"skin": (-1.0, 0.0, 1.0), "hue": (-1.0, 0.0, 1.0), "size": (-1.0, 0.0, 1.0)}


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_a_perfect_slider_moves_the_rest_no_more_than_the_folders_do(stand_ins, name):
    scenes = evaluation_scenes(stand_ins.pictures, name)
    shown = [softened(render(at_scale(scenes, name, m), stand_ins.pictures)) for m in MULTIPLIERS[name]]
    columns = stand_ins.measured(name, torch.stack(shown, 1), MULTIPLIERS[name], softened)
    for end in (0, -1):
        assert 0.6 < columns["selectivity"][end] < 2
        assert columns["strangeness"][end] < 0.6
        assert columns["across"][end] == pytest.approx(1, abs=0.6)


@pytest.mark.parametrize("name", ["skin", "size"])
def test_a_slider_that_also_moves_the_emoji_is_not_selective(stand_ins, name):
    scenes = evaluation_scenes(stand_ins.pictures, name)
    aside = torch.where(scenes.x > 64, -6.0, 6.0)
    shown = [
        softened(render(replace(at_scale(scenes, name, m), x=scenes.x + aside * (m != 0)), stand_ins.pictures))
        for m in MULTIPLIERS[name]
    ]
    columns = stand_ins.measured(name, torch.stack(shown, 1), MULTIPLIERS[name], softened)
    assert columns["selectivity"][0] < 0.4 and columns["selectivity"][-1] < 0.4
    assert columns["across"][-1] > 2


def test_pictures_of_another_name_are_strange(stand_ins):
    scenes = evaluation_scenes(stand_ins.pictures, "size")
    attribute = ATTRIBUTES["size"]
    wrong = render(replace(scenes, name=scenes.name.roll(1)), stand_ins.pictures)
    seen = look(wrong, scenes, stand_ins.pictures, attribute.field, attribute.read)
    assert stand_ins.strangeness("size", wrong, seen, 0.0) > 0.6
