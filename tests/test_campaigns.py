"""Short runs of the campaigns in tests/campaigns. The full ones are commands."""

import sys

import pytest
from campaigns import count_lines, fuzz, kill, make_ladders, resume_old, same_sliders, soak
from conftest import ROOT
from shapesworld.attributes import training_scenes
from shapesworld.world import captions, render
from sliders.report.grids import to_picture


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


def test_a_slider_is_the_same_after_a_resume_and_another_one_in_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(same_sliders, "STEPS", 4)
    monkeypatch.setattr(same_sliders, "HALF", 2)
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


def test_the_rows_with_the_most_foreign_pixels_are_left_out(tmp_path):
    """Shapes of the world, two rows of which have a stripe of another colour in one picture."""
    scenes = training_scenes("warmth", 0.0, 4)
    (tmp_path / "captions").mkdir()
    for scale in (-1.0, 1.0):
        (tmp_path / f"x{scale}").mkdir()
        for row, picture in enumerate(render(training_scenes("warmth", scale, 4))):
            if (row, scale) in ((1, 1.0), (2, -1.0)):
                picture[1, :9] = 1.0
            to_picture(picture).save(tmp_path / f"x{scale}" / f"{row}.png")
    for row, text in enumerate(captions(scenes)):
        (tmp_path / "captions" / f"{row}.txt").write_text(f"{text}\n")
    assert set(make_ladders.tick_the_worst(tmp_path)) == {"1", "2"}
    assert set((tmp_path / "leave_out.txt").read_text().split()) == {"1", "2"}


SOURCE = '''"""A module,

in two lines."""

# a comment
TEXT = """not a docstring

but code"""  # two lines, for the blank one does not count


class A:
    """A class."""

    def f(self):
        """A method."""

        def inner(): ...

        return inner(
            1,
        )
'''


def test_lines_of_code_are_counted_without_docstrings_comments_and_blank_lines(tmp_path):
    assert count_lines.count_source(SOURCE) == count_lines.Count(files=1, functions=2, lines=8)
    package = tmp_path / count_lines.PACKAGE
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "room" / "a.py").write_text("def f(a): return [ 1,\n 2]\n")
    before = count_lines.count_rooms(tmp_path)
    assert before == {".": count_lines.Count(files=1), "room": count_lines.Count(1, 1, 2)}  # as ruff formats it
    (package / "room" / "b.py").write_text("A = 1\nB = 2\n")
    rows = count_lines.table([before, count_lines.count_rooms(tmp_path)]).splitlines()
    assert rows[-1].split("  ")[-1] == "2 / 4 / +100.0%"
