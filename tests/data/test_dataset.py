"""Images are matched by name across the scale folders, and every problem is reported at once."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import FOUR_FOLDERS, disc, make_scale_folders, write_experiment
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sliders.config.schema import Data
from sliders.config.settings import load_settings
from sliders.data.dataset import ScaleFolders
from sliders.data.images import read_image
from sliders.system.errors import InputError


def find(root: Path, folders=FOUR_FOLDERS, scales=(-2.0, -1.0, 1.0, 2.0)) -> ScaleFolders:
    return ScaleFolders.find(Data(folder_main=root, folders=folders, scales=scales), 32)


def mistakes(root: Path, **data) -> list[str]:
    with pytest.raises(InputError) as caught:
        find(root, **data)
    return str(caught.value).splitlines()


def put(path: Path, size=(64, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    disc(size, 0.5).save(path)
    return path


# --- what is found


def test_every_file_lies_in_the_folder_of_its_scale(tmp_path):
    data = find(make_scale_folders(tmp_path, names=("b", "a", "c")))
    assert data.names == ("a", "b", "c")
    assert data.scales == (-2, -1, 1, 2)
    for name, row in zip(data.names, data.files, strict=True):
        assert row == tuple(tmp_path / folder / f"{name}.png" for folder in FOUR_FOLDERS)
    assert (len(data.names) * len(data.scales), data.sizes, data.ignored) == (12, ((64, 64),) * 3, ())


pairs = st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=4, max_size=4, unique=True)


@given(pairs, st.permutations(FOUR_FOLDERS))
def test_the_pixels_at_a_scale_are_those_of_the_folder_given_with_it(tmp_path_factory, scales, folders):
    """From the command line to the pixels: the brightness of the disc shows which folder it is."""
    tmp_path = tmp_path_factory.getbasetemp()
    flags = ["--folders", ", ".join(folders), "--scales", ", ".join(map(str, scales))]
    (settings,), _ = load_settings(write_experiment(tmp_path, flags=flags))
    data = ScaleFolders.find(settings.data, 32)
    brightness = {folder: (i + 1) / 4 for i, folder in enumerate(FOUR_FOLDERS)}
    wanted = {scale: brightness[folder] for folder, scale in zip(folders, scales, strict=True)}
    assert list(data.scales) == sorted(scales)
    for row in data.files:
        for scale, path in zip(data.scales, row, strict=True):
            assert read_image(path).getpixel((32, 32))[0] / 255 == pytest.approx(wanted[scale], abs=0.01)


def test_names_match_across_extensions_letter_case_and_unicode_forms(tmp_path):
    composed, decomposed = unicodedata.normalize("NFC", "Café"), unicodedata.normalize("NFD", "café")
    assert composed.casefold() != decomposed
    files = [f"low/{composed}.png", f"high/{decomposed}.JPG", "low/two words.webp", "high/Two Words.TIFF"]
    for file in files:
        put(tmp_path / file)
    data = find(tmp_path, ("low", "high"), (0.0, 1.0))
    found = [[str(path.relative_to(tmp_path)) for path in row] for row in data.files]
    assert found == [files[:2], files[2:]]


def test_hidden_files_are_passed_over_and_other_files_are_told(tmp_path):
    make_scale_folders(tmp_path, folders=("low", "high"), names=("a",))
    for name in (".DS_Store", "._a.png", ".hidden.png"):
        (tmp_path / "low" / name).write_bytes(b"\0")
    for name in ("Thumbs.db", "notes.txt"):
        (tmp_path / "high" / name).write_bytes(b"\0")
    (tmp_path / "high" / "old.png").mkdir()
    data = find(tmp_path, ("low", "high"), (0.0, 1.0))
    assert data.names == ("a",)
    assert data.ignored == ("high/Thumbs.db", "high/notes.txt")


def test_a_photograph_stored_on_its_side_fits_an_upright_one(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "low" / "a.png", (64, 96))
    (tmp_path / "high").mkdir()
    disc((96, 64), 0.5).save(tmp_path / "high" / "a.jpg", exif=exif)
    assert find(tmp_path, ("low", "high"), (0.0, 1.0)).sizes == ((64, 96),)


def test_names_may_differ_in_size_from_one_another(tmp_path):
    for folder in ("low", "high"):
        put(tmp_path / folder / "tall.png", (64, 128))
        put(tmp_path / folder / "wide.png", (128, 64))
    data = find(tmp_path, ("low", "high"), (0.0, 1.0))
    assert data.sizes == ((64, 128), (128, 64))
    assert data.fitted_size(0, 128) == data.fitted_size(1, 128)[::-1]


def test_folders_may_lie_deeper_or_beside_the_main_folder(tmp_path):
    put(tmp_path / "main" / "sub" / "low" / "a.png")
    put(tmp_path / "beside" / "a.png")
    data = find(tmp_path / "main", ("sub/low", "../beside"), (0.0, 1.0))
    assert [path.parent.name for path in data.files[0]] == ["low", "beside"]


def test_the_table_shows_each_file_under_its_scale(tmp_path):
    make_scale_folders(tmp_path, folders=("dim", "lit"), names=("a", "robe"), suffix=".bmp")
    lines = find(tmp_path, ("dim", "lit"), (0.67, 2.0)).table().splitlines()
    assert [line.split() for line in lines] == [
        ["image", "dim", "→", "0.67", "lit", "→", "2", "size"],
        ["a", "a.bmp", "a.bmp", "64×64"],
        ["robe", "robe.bmp", "robe.bmp", "64×64"],
    ]
    assert len({line.index("64×64") for line in lines[1:]}) == 1


# --- what is wrong


def test_a_good_set_with_many_mistakes_shows_them_all_at_once(tmp_path):
    make_scale_folders(tmp_path, names=("a", "b", "c", "d"))
    (tmp_path / "low" / "a.png").unlink()
    (tmp_path / "high" / "b.png").write_text("no picture")
    put(tmp_path / "veryhigh" / "c.png", (64, 32))
    put(tmp_path / "verylow" / "D.bmp")
    lines = mistakes(tmp_path)
    assert len(lines) == 4
    for words in (
        ("folder 'low'", "3 of 4", "lacks a.png"),
        ("high/b.png", "cannot be read as an image"),
        ("veryhigh/c.png is 64×32", "verylow/c.png is 64×64"),
        ("folder 'verylow'", "D.bmp, d.png", "keep one"),
    ):
        assert sum(all(word in line for word in words) for line in lines) == 1, words


def test_a_missing_folder_does_not_hide_what_is_wrong_in_the_others(tmp_path):
    make_scale_folders(tmp_path, folders=("low", "high"), names=("a",))
    (tmp_path / "low" / "a.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    lines = mistakes(tmp_path, folders=("low", "high", "empty", "nowhere", "neither"), scales=(0.0, 1.0, 2.0, 3.0, 4.0))
    assert len(lines) == 4
    for word in ("'nowhere' is not a folder", "'neither' is not a folder", "'empty' holds no images", "low/a.png"):
        assert sum(word in line for line in lines) == 1, word
    assert all("holds empty, high, low" in line for line in lines if "is not a folder" in line)


def test_every_missing_partner_is_named_up_to_eight(tmp_path):
    make_scale_folders(tmp_path, folders=("low", "high"), names=[f"image{i:02}" for i in range(12)])
    for i in range(10):
        (tmp_path / "high" / f"image{i:02}.png").unlink()
    (line,) = mistakes(tmp_path, folders=("low", "high"), scales=(0.0, 1.0))
    assert "2 of 12" in line
    assert all(f"image{i:02}.png" in line for i in range(8))
    assert "and 2 more" in line


def test_partners_missing_on_both_sides_are_told_for_each_folder(tmp_path):
    for file in ("low/a.png", "low/b.png", "high/b.png", "high/c.png"):
        put(tmp_path / file)
    lines = mistakes(tmp_path, folders=("low", "high"), scales=(0.0, 1.0))
    assert len(lines) == 2
    assert "'low'" in lines[0] and "lacks c.png" in lines[0]
    assert "'high'" in lines[1] and "lacks a.png" in lines[1]


def test_one_folder_under_two_names_is_found_out(tmp_path):
    make_scale_folders(tmp_path, folders=("low",))
    (tmp_path / "link").symlink_to(tmp_path / "low", target_is_directory=True)
    (line,) = mistakes(tmp_path, folders=("low", "link"), scales=(0.0, 1.0))
    assert "'link' and 'low' are the same folder" in line


def test_a_link_to_nowhere_is_an_unreadable_image(tmp_path):
    make_scale_folders(tmp_path, folders=("low", "high"), names=("a",))
    (tmp_path / "low" / "a.png").unlink()
    (tmp_path / "low" / "a.png").symlink_to(tmp_path / "gone.png")
    (line,) = mistakes(tmp_path, folders=("low", "high"), scales=(0.0, 1.0))
    assert "low/a.png: cannot be read" in line


def test_three_sizes_of_one_name_are_told_in_one_sentence(tmp_path):
    for folder, width in (("a", 32), ("b", 64), ("c", 96)):
        put(tmp_path / folder / "x.png", (width, 64))
    (line,) = mistakes(tmp_path, folders=("a", "b", "c"), scales=(0.0, 1.0, 2.0))
    assert all(words in line for words in ("a/x.png is 32×64", "b/x.png is 64×64", "c/x.png is 96×64"))


def test_generated_discs_grow_brighter_from_folder_to_folder(tmp_path):
    """The helper that other tests build on does what it says."""
    make_scale_folders(tmp_path, names=("a",))
    centres = [np.asarray(read_image(tmp_path / f / "a.png"))[32, 32, 0] for f in FOUR_FOLDERS]
    assert centres == sorted(set(centres))
