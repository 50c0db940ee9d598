"""Short runs of the campaigns in tests/campaigns. The full ones are commands."""

import sys

import pytest
from campaigns import fuzz, kill, resume_old, same_sliders, soak
from conftest import ROOT


def test_kills_lose_nothing(tmp_path):
    assert kill.main(3, 1, tmp_path)["kills"] == 3


def test_unusual_input_ends_cleanly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answers = fuzz.main(100, 1, tmp_path)
    assert all(sum(statuses.values()) >= (2 if kind == "runs" else 10) for kind, statuses in answers.items())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_open_files_do_not_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "EVERY", 6)
    assert len(soak.main(25, tmp_path, settled=12, model="tiny")) == 4


def test_a_slider_is_the_same_after_a_resume_and_another_one_in_bfloat16(tmp_path):
    whole, resumed, rounded = names = "c3lier noxattn", "c3lier noxattn, resumed half-way", "bfloat16: c3lier noxattn"
    hashes = same_sliders.main(ROOT, tmp_path, names)
    assert hashes[whole] == hashes[resumed] != hashes[rounded]
    assert same_sliders.read_table(same_sliders.table(hashes)) == hashes
    sliders = [same_sliders.slider_of(name, tmp_path) for name in names]
    assert same_sliders.distance(sliders[0], sliders[1]) == 0
    assert 0 < same_sliders.distance(sliders[0], sliders[2]) < 0.5


def test_a_row_differs_if_it_is_new_or_changed_or_failed():
    before = {"a": "1", "b": "2", "d": same_sliders.FAILED}
    after = {"a": "1", "b": "3", "c": "4", "d": same_sliders.FAILED}
    assert same_sliders.differing(before, after) == ["b", "c", "d"]


def test_a_run_that_another_checkout_began_ends_with_its_slider(tmp_path):
    """The other checkout is this one, in a process of its own."""
    names = ("c3lier noxattn",)
    hashes, wrong = resume_old.main(ROOT, tmp_path, names)
    assert (tuple(hashes), wrong) == (names, [])
