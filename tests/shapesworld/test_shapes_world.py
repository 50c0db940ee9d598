"""The shapes world measures what it draws. All measurements of sliders depend on this."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shapesworld.attributes import (
    ATTRIBUTES,
    EVALUATION_COUNT,
    EVALUATION_SEEDS,
    evaluation_scenes,
    measured,
    training_scenes,
)
from shapesworld.evaluate import _columns
from shapesworld.make_dataset import write_dataset
from shapesworld.world import (
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    all_captions,
    caption_index,
    captions,
    hue_of,
    measure,
    render,
    rgb_at_hue,
    sample_scenes,
    words,
)

ROOT = Path(__file__).parents[2]


def drawn(count=128, seed=0):
    return sample_scenes(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
def test_radius_and_centroid_are_recovered_for_every_shape(shape):
    scenes = drawn(256)
    chosen = scenes.shape == shape
    measures = measure(render(scenes), scenes)
    for name in ("radius", "x", "y"):
        error = (getattr(measures, name) - getattr(scenes, name))[chosen].abs()
        assert error.max() < 0.5, f"{name} of a {SHAPES[shape]} is off by {error.max():.2f} px"


def test_sampled_shapes_are_entirely_inside_the_frame():
    scenes = drawn(512)
    # All red on white: the outermost pixels are background, except for the antialiased tip of a triangle.
    red_on_white = replace(
        scenes, colour=torch.zeros_like(scenes.colour), background=torch.zeros_like(scenes.background)
    )
    images = render(red_on_white)
    frame = torch.cat([images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]], dim=-1)
    assert frame.min() > 0.8


def test_a_clean_picture_has_no_mess_except_its_antialiased_edge():
    scenes = drawn()
    images = render(scenes)
    measures = measure(images, scenes)
    edge = 2 * 3 * scenes.radius / IMAGE_SIZE**2 * 2  # an upper bound on the perimeter, one pixel wide
    assert (measures.mess <= edge).all()
    assert measures.mess.mean() < 0.006
    assert measures.colour_error.max() < 0.1


def test_mess_is_the_share_of_foreign_pixels():
    scenes = drawn(24)
    images = render(scenes)
    before = measure(images, scenes).mess
    images[:, :, :16, :] = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1)  # magenta, which is in no caption
    added = measure(images, scenes).mess - before
    assert (added > 0.9 * 16 / IMAGE_SIZE).all()
    assert (added <= 16 / IMAGE_SIZE).all()


def test_an_empty_picture_has_radius_zero_and_no_position():
    scenes = drawn(4)
    measures = measure(render(replace(scenes, radius=torch.full((4,), -1.0))), scenes)
    assert measures.radius.eq(0).all()
    assert measures.x.isnan().all()
    assert measures.hue.isnan().all()


@pytest.mark.parametrize("degrees", [0.0, 15.0, 40.0, 60.0])
def test_hue_is_recovered_and_does_not_count_as_mess(degrees):
    attribute = ATTRIBUTES["hue"]
    scenes = training_scenes("hue", degrees / 20)
    measures = measure(render(scenes), scenes, attribute.paint_range)
    assert measures.hue == pytest.approx([degrees] * len(scenes), abs=0.5)
    assert measures.mess.max() < 0.015  # the antialiased edge of the largest square
    blue = replace(scenes, paint=torch.tensor(COLOURS["blue"]).repeat(len(scenes), 1))
    assert measure(render(blue), scenes, attribute.paint_range).mess.min() > 0.03


def test_hue_of_is_the_hsv_hue():
    degrees = [-150.0, -90.0, -20.0, 0.0, 20.0, 70.0, 179.0]
    assert hue_of(torch.tensor([rgb_at_hue(value) for value in degrees])) == pytest.approx(degrees, abs=1e-3)
    assert rgb_at_hue(0) == pytest.approx(COLOURS["red"])


def test_scenes_depend_only_on_the_generator():
    assert torch.equal(render(drawn(8, seed=3)), render(drawn(8, seed=3)))
    assert not torch.equal(render(drawn(8, seed=3)), render(drawn(8, seed=4)))


def test_captions_are_unique_and_never_mention_the_size():
    assert len(set(all_captions())) == len(all_captions()) == 72
    scenes = drawn(64)
    assert captions(scenes) == captions(replace(scenes, radius=scenes.radius * 2))
    assert [all_captions()[index] for index in caption_index(scenes)] == captions(scenes)
    assert all_captions()[0] == "a red circle on a white background"
    assert set(" ".join(all_captions()).split()) == set(words())


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_folder_shows_what_its_scale_wants(name):
    attribute = ATTRIBUTES[name]
    assert len(attribute.folders) == len(attribute.scales) == len(attribute.wanted)
    for scale, wanted in zip(attribute.scales, attribute.wanted, strict=True):
        scenes = training_scenes(name, scale)
        shown = measured(name, render(scenes), scenes)
        tolerance = 0.04 if name == "stretch" else 0.6
        assert getattr(shown, attribute.measure) == pytest.approx([wanted] * len(scenes), abs=tolerance)
        assert shown.shape.min() > 0.94


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_evaluation_captions_were_never_trained(name):
    trained = set(captions(training_scenes(name, 1.0)))
    evaluated = captions(evaluation_scenes(name))
    assert len(evaluated) == EVALUATION_COUNT == len(set(EVALUATION_SEEDS))
    assert not trained & set(evaluated)
    assert len(set(zip(evaluated, EVALUATION_SEEDS, strict=True))) == EVALUATION_COUNT


def test_training_scenes_cover_the_world():
    scenes = training_scenes("size", 1.0)
    assert scenes.shape.unique().numel() == 3
    assert scenes.colour.unique().numel() == 6
    assert scenes.background.unique().numel() == 4


def test_data_set_has_the_same_names_in_every_folder(tmp_path):
    write_dataset("size", tmp_path)
    folders = [tmp_path / folder for folder in ATTRIBUTES["size"].folders]
    names = [sorted(file.name for file in folder.glob("*.png")) for folder in folders]
    assert all(each == names[0] for each in names)
    assert len(names[0]) == 6
    with Image.open(folders[0] / names[0][0]) as picture:
        assert picture.size == (IMAGE_SIZE, IMAGE_SIZE)
        assert picture.mode == "RGB"
    texts = sorted(file.read_text(encoding="utf-8").strip() for file in tmp_path.rglob("*.txt"))
    assert texts == sorted(captions(training_scenes("size", 1.0)))


@pytest.mark.parametrize("name", ["size", "size_hard", "position", "stretch", "hole"])
def test_drawn_scenes_have_captions_of_their_own_and_lie_inside_the_frame(name):
    evaluated = set(captions(evaluation_scenes(name)))
    for scale in ATTRIBUTES[name].scales:
        scenes = training_scenes(name, scale, 48)
        texts = captions(scenes)
        assert len(set(texts)) == 48 and not evaluated & set(texts)
        drawn_ones = render(scenes)[6:]  # after the chosen ones
        frame = torch.cat([drawn_ones[:, :, [0, -1]].flatten(2), drawn_ones[:, :, :, [0, -1]].flatten(2)], 2)
        assert (frame == frame[:, :, :1]).all()  # background
    with pytest.raises(ValueError, match="captions left"):
        training_scenes(name, 1.0, 80)


def test_pictures_in_the_repository_are_those_the_command_writes(tmp_path):
    """Processors round differently: a few values in a million are the next one of 256."""
    stored = ROOT / "datasets" / "shapes_size"
    write_dataset("size", tmp_path, 24)
    names = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(stored) for p in stored.rglob("*") if p.is_file())
    differing, values = 0, 0
    for name in names:
        if name.suffix == ".txt":
            assert (stored / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8")
            continue
        one, other = (np.asarray(Image.open(root / name), dtype=int) for root in (stored, tmp_path))
        assert np.abs(one - other).max() <= 1, name
        differing, values = differing + (one != other).sum(), values + one.size
    assert values == 4 * 24 * IMAGE_SIZE**2 * 3
    assert differing < 1e-4 * values


def test_model_loads_as_an_ordinary_folder_and_its_training_uses_the_pipelines_embeddings():
    from diffusers import StableDiffusionXLPipeline
    from shapesworld.pretrain import encode_prompts, tokenize

    folder = ROOT / "trainscripts" / "shapesworld" / "model"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 20e6
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    assert {module.dtype for module in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)} == {torch.float32}
    text = all_captions()[5]
    input_ids = [tokenize(tokenizer, [text, ""]) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)]
    assert (input_ids[0][0] == pipe.tokenizer.eos_token_id).nonzero()[0].item() == 1 + len(text.split())
    with torch.no_grad():
        embeddings, pooled = encode_prompts(pipe, input_ids)
        stock = pipe.encode_prompt(text, device="cpu")  # embeddings, negative ones, and the same pooled
    for ours, theirs in zip((*embeddings, *pooled), (stock[0][0], stock[1][0], stock[2][0], stock[3][0]), strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_shape_notices_lost_corners_and_mess_does_not():
    """Circles in place of squares of equal area have the right colours, place and size, but not the right shape."""
    scenes = drawn(64)
    squares = replace(scenes, shape=torch.full_like(scenes.shape, SHAPES.index("square")))
    circles = replace(scenes, shape=torch.full_like(scenes.shape, SHAPES.index("circle")))
    right, wrong = measure(render(squares), squares), measure(render(circles), squares)
    assert (wrong.radius - right.radius).abs().max() < 0.5
    assert (wrong.mess - right.mess).abs().max() < 0.01
    assert right.shape.min() > 0.95
    assert wrong.shape.max() < 0.88  # by geometry: 0.83 for equal areas


def test_a_hole_is_measured_and_the_filled_shape_is_whole():
    scenes = replace(drawn(32), radius=torch.full((32,), 30.0), x=torch.full((32,), 64.0), y=torch.full((32,), 70.0))
    holed = replace(scenes, hole=torch.full((32,), 8.0))
    measures = measure(render(holed), holed, filled=True)
    assert measures.hole == pytest.approx([8.0] * 32, abs=0.5)
    assert (measures.radius - 30).abs().max() < 0.6 and measures.shape.min() > 0.94
    assert measure(render(scenes), scenes).hole.max() == 0


def test_drift_is_the_way_from_multiplier_0_except_along_what_the_slider_moves():
    scenes = replace(drawn(16), x=torch.full((16,), 60.0), y=torch.full((16,), 60.0), radius=torch.full((16,), 14.0))
    moved = replace(scenes, x=scenes.x + 3, y=scenes.y + 4)
    found, base = measure(render(moved), scenes), measure(render(scenes), scenes)
    assert _columns(found, base, ATTRIBUTES["size"])["drift"] == pytest.approx(5, abs=0.1)
    assert _columns(found, base, ATTRIBUTES["position"])["drift"] == pytest.approx(4, abs=0.1)
    assert _columns(found, base, ATTRIBUTES["size"])["recolour"] < 0.01


def test_a_hue_beyond_half_a_circle_is_read_on_from_that_of_multiplier_0():
    """From purple at -70 past blue to green at -200, which alone would be 160."""
    scenes = replace(drawn(8), colour=torch.full((8,), list(COLOURS).index("purple")))
    green, purple = (replace(scenes, paint=torch.tensor(rgb_at_hue(d)).repeat(8, 1)) for d in (-200.0, -70.0))
    found, base = (measured("warmth", render(s), scenes) for s in (green, purple))
    assert _columns(found, base, ATTRIBUTES["warmth"])["mean"] == pytest.approx(-200, abs=0.5)
    assert found.hue == pytest.approx([160.0] * 8, abs=0.5)
