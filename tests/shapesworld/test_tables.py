"""The tables that compare sliders."""

import pytest
from shapesworld.attributes import ATTRIBUTES
from shapesworld.evaluate import SHAPES
from shapesworld.two_sliders import format_grid
from worlds.compare_settings import Job, format_robustness, format_table
from worlds.measure import main as measure


def result(seed, offset, robustness=None):
    """A slider whose sizes are `offset` px too large at every multiplier."""
    attribute = ATTRIBUTES["size"]
    multipliers = (-1.0, 0.0, *attribute.scales, 2.7)
    columns = {c: [0.01 * (i + 1) for i in range(7)] for c in ("spread", "mess", "shape", "drift", "recolour")}
    means = [attribute.at_scale(m) + offset for m in multipliers]
    job = Job(
        "size",
        "2",
        seed,
        6,
        750,
        4,
        2e-3,
        "noxattn",
        0.0,
        captions="own",
        ends=False,
        algo="lora",
        rank=16,
        factor=None,
    )
    found = {**vars(job), "multipliers": multipliers, "mean": means, "calibration": offset, **columns}
    return found if robustness is None else {**found, "robustness": robustness}


def test_a_row_holds_the_means_over_the_seeds_and_each_seeds_calibration():
    *_, row = format_table(SHAPES, [result(1, 3.0), result(0, 1.0)]).splitlines()
    attribute, bias, calibration, measured, mess, shape, outside, *_ = [cell.strip() for cell in row.split("|")[1:-1]]
    assert (attribute, bias, calibration) == ("size", "2", "**2** (1, 3)")
    assert measured == "34.1 (0.03) / 36.7 (0.04) / 39.1 (0.05) / 44.7 (0.06)"
    assert mess == "0.030 / 0.040 / 0.050 / 0.060" and shape == "0.03 / 0.04 / 0.05 / 0.06"
    assert outside == "20.7 / 50.3 at -1 / 2.7"


def test_robustness_is_shown_where_it_was_measured():
    names = ("guidance 1", "guidance 7", "Euler a", "DPM++ 2M", "30 steps")
    values = dict(zip(names, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))
    assert format_robustness([result(0, 1.0)]) == ""
    assert format_robustness([result(0, 1.0, values)]).endswith("| size | 2 | 1 | 1 | 2 | 3 | 4 | 5 |")


def test_two_sliders_are_judged_at_each_multiplier_of_the_other():
    """The size slider is 2 px off where position is at 1, and exact elsewhere."""
    size, position = ATTRIBUTES["size"], ATTRIBUTES["position"]
    grid = [
        {"at": (s, p), "size": size.at_scale(s) + 2 * (p == 1.0), "position": position.at_scale(p), "mess": 0.01 * s}
        for s in (0.0, *size.scales)
        for p in (0.0, *position.scales)
    ]
    lines = format_grid(grid, ["size", "position"]).splitlines()
    found = {line.split(":")[0].strip(): line.split(":")[1].split() for line in lines if " at " in line and ":" in line}
    assert float(found["position at     1"][0]) == pytest.approx(2)
    assert float(found["position at    -1"][0]) == pytest.approx(0, abs=1e-6)
    assert float(found["position at     0"][1]) == pytest.approx(0.02)
    assert all(float(found[f"size at {s:5g}"][0]) < 1e-6 for s in size.scales)


def test_measuring_without_a_trained_scale_is_refused_before_the_model_is_loaded(monkeypatch, tmp_path, capsys):
    nothing = ["measure.py", str(tmp_path / "s.safetensors"), "--model", str(tmp_path / "no model")]
    monkeypatch.setattr("sys.argv", [*nothing, "--multipliers", "0", "0.67", "2"])
    assert measure(SHAPES, "measures") == 2
    assert capsys.readouterr().err == (
        "error: --multipliers: 1, 1.3 is missing, which size is measured by: add it, or leave the flag out.\n"
    )
