"""A slider trained for a minute on the shapes world must move the attribute, and the right way."""

import math
from dataclasses import replace

import pytest
import yaml
from conftest import ROOT, TEXT_SCRIPTS, write_experiment, write_yaml
from PIL import Image
from shapesworld.attributes import ATTRIBUTES
from shapesworld.evaluate import SHAPES
from shapesworld.make_dataset import write_dataset
from sliders.config.settings import load_settings, load_text_settings
from sliders.train.runs import run_all
from worlds.base import dense_multipliers
from worlds.evaluate import Curve, evaluate
from worlds.models import attached, device_of, load_model, world_sampling
from worlds.plot import plot_curves


@pytest.fixture(scope="module")
def short_slider(tmp_path_factory):
    """`small` at −1 and `huge` at 1, 70 steps of the demo's objective."""
    root = tmp_path_factory.mktemp("effect")
    write_dataset("size_hard", root / "data")
    flags = ["--folders", "small, huge", "--scales", "-1, 1", "--iterations", "70", "--rank", "8", "--alpha", "8"]
    argv = write_experiment(
        root,
        flags=flags,
        data=root / "data",
        prompts=[{"target": "", "resolution": 128}],
        pretrained_model={"name_or_path": str(SHAPES.model)},
        train={"lr": 2e-3, "lr_scheduler": "linear", "max_denoising_steps": 1000, "timestep_bias": 3},
    )
    (report,) = run_all(load_settings(argv)[0])
    model = load_model(SHAPES.model)
    return evaluate(SHAPES, model, attached(report.path, model), "size_hard", multipliers=(-1.0, 0.0, 1.0))


def test_a_short_slider_has_an_effect_of_the_right_sign(short_slider):
    """The folders' radii are 13.4 and 40 px. An untrained or swapped slider gives 0 or less."""
    low, _, high = short_slider.mean
    assert high - low > 5


@pytest.fixture(scope="module")
def base():
    return evaluate(SHAPES, load_model(SHAPES.model), None, "size")


def test_multiplier_0_is_the_base_model(short_slider, base):
    assert short_slider.at("mean", 0.0) == pytest.approx(base.mean[0], abs=1e-3)
    assert short_slider.at("mess", 0.0) == pytest.approx(base.at("mess", 0.0), abs=1e-4)


def test_the_base_model_is_faithful_to_its_world(base):
    assert base.at("mess", 0.0) <= 0.012
    assert 20 < base.mean[0] < 33


def test_a_short_text_slider_moves_colour_to_both_sides(tmp_path, monkeypatch):
    """The demo's prompts, 16 steps: purple, at a hue of -70 degrees, becomes bluer below 0 and redder above."""
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((TEXT_SCRIPTS / "data" / "config-xl-demo.yaml").read_text(encoding="utf-8"))
    del config["preview"]
    config["train"] |= {"iterations": 16, "max_denoising_steps": 6}
    path = write_yaml(tmp_path / "config.yaml", config)
    argv = ["--config_file", str(path), "--save_path", str(tmp_path / "models"), "--device", "cpu"]
    (report,) = run_all(load_text_settings(argv)[0])
    model = load_model(SHAPES.model)
    sampling = replace(world_sampling(SHAPES.image_size, device_of(model)), steps=6)
    network = attached(report.path, model)
    below, middle, above = evaluate(SHAPES, model, network, "warmth", (-1.0, 0.0, 1.0), sampling).mean
    assert below < middle - 8 and above > middle + 8


def test_columns_of_the_measurement():
    columns = {"mean": (27.0, 33.0, 34.7, 37.1, 44.7), "spread": (0.01,) * 5}
    curve = Curve("size", ATTRIBUTES["size"], (0.0, 0.67, 1.0, 1.3, 2.0), columns)
    assert curve.calibration == pytest.approx((0.94 + 0.0 + 0.0 + 2.0) / 4)
    assert curve.ordered
    assert curve.order == pytest.approx(1)
    assert dense_multipliers(ATTRIBUTES["size"]) == (-2.0, -1.0, 0.0, 0.67, 0.835, 1.0, 1.15, 1.3, 1.65, 2.0, 2.7)


def test_the_plot_is_a_picture_of_four_panels(tmp_path):
    multipliers = dense_multipliers(ATTRIBUTES["hue"])
    values = tuple(20 * m + math.sin(m) for m in multipliers)
    columns = {"mean": values} | {name: (0.01,) * len(values) for name in ("spread", "mess", "shape")}
    curve = Curve("hue", ATTRIBUTES["hue"], multipliers, columns)
    plot_curves({"a": curve, "b": curve}, SHAPES, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size == (4 * 480, 360)
