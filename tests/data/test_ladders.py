"""Ladders made elsewhere: sizes that nearly agree, images that are the same, hundreds of names, formats of phones."""

import importlib.util

import numpy as np
import pytest
from conftest import disc, make_scale_folders, write_experiment
from experiments import settings_of
from PIL import Image
from sliders.config.flags import parse_names
from sliders.config.prompts import PromptSet
from sliders.config.schema import Data
from sliders.data import images
from sliders.data.dataset import ScaleFolders
from sliders.data.images import is_image_name, read_image
from sliders.system.errors import InputError
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer

PROMPTS = (PromptSet(target="", resolution=64),)


def found(root, folders=("low", "high"), scales=(-1.0, 1.0)):
    return ScaleFolders.find(Data(folder_main=root, folders=folders, scales=scales), 32)


def remarks(data):
    return "\n".join(data.remarks(PROMPTS))


def ladder(root, *sizes):
    """One name in folders a, b, …, of these sizes."""
    for folder, (number, size) in zip("abcdefgh", enumerate(sizes, start=1), strict=False):
        (root / folder).mkdir(parents=True, exist_ok=True)
        disc(size, number / len(sizes)).save(root / folder / "x.png")
    return found(root, tuple("abcdefgh"[: len(sizes)]), tuple(map(float, range(1, len(sizes) + 1))))


# --- sizes


@pytest.mark.parametrize(
    ("sizes", "usual"),
    [
        (((256, 256), (256, 264), (256, 256)), (256, 256)),
        (((256, 264), (256, 256), (256, 256)), (256, 256)),
        (((100, 64), (105, 64)), (100, 64)),
        (((64, 64), (128, 128), (64, 64)), (64, 64)),
        (((100, 150), (101, 150), (99, 150)), (100, 150)),
        (((66, 64), (64, 64)), (66, 64)),
    ],
)
def test_images_of_nearly_one_shape_are_fitted_to_one_size(tmp_path, sizes, usual):
    data = ladder(tmp_path, *sizes)
    assert data.sizes == (usual,)
    assert "1 name(s), such as x (" in remarks(data) and "differ in size" in remarks(data)
    assert all(f"{w}×{h}" in data.table() for w, h in sizes)


@pytest.mark.parametrize(
    "sizes", [((64, 64), (64, 68)), ((64, 96), (96, 64)), ((100, 64), (106, 64)), ((64, 64), (66, 64), (64, 66))]
)
def test_images_of_other_shapes_are_refused_with_the_remedy(tmp_path, sizes):
    with pytest.raises(InputError) as caught:
        ladder(tmp_path, *sizes)
    assert all(f"is {w}×{h}" in str(caught.value) for w, h in sizes)
    assert "at most 5%: crop or scale them" in str(caught.value)


def test_all_names_that_do_not_fit_are_named(tmp_path):
    names = [f"n{i:02}" for i in range(15)]
    make_scale_folders(tmp_path, folders=("low", "high"), names=names)
    for name in names:
        disc((64, 96), 0.5).save(tmp_path / "high" / f"{name}.png")
    with pytest.raises(InputError) as caught:
        found(tmp_path)
    assert [name for name in names if f"low/{name}.png" not in str(caught.value)] == []


def test_all_images_of_a_name_are_trained_at_one_size_and_told_the_model_alike(tmp_path):
    root = make_scale_folders(tmp_path / "data")
    for folder in ("low", "high", "veryhigh"):
        disc((64, 66), 0.3).save(root / folder / "one.png")
    argv = write_experiment(tmp_path, prompts=[{"target": "", "resolution": 64, "batch_size": 8}])
    trainer = Trainer(make_plan(settings_of(argv)))
    draw = trainer.step.draw(0)
    batch = trainer.step.make_batch(draw)
    assert batch.latents.shape == (16, 4, 8, 8)
    told = {(row.image, *ids.tolist()) for row, ids in zip(draw.rows, batch.conditioning["time_ids"], strict=True)}
    assert told == {(0, 66, 64, 1, 0, 64, 64), (1, 64, 64, 0, 0, 64, 64)}
    assert len({row.scale for row in draw.rows if row.image == 0}) > 1


# --- images that are the same


def test_a_ladder_of_one_picture_is_refused(tmp_path):
    root = make_scale_folders(tmp_path / "data", folders=("low",))
    (root / "high").mkdir()
    for name in ("one", "two"):
        Image.open(root / "low" / f"{name}.png").save(root / "high" / f"{name}.bmp")  # other bytes, the same pixels
    argv = write_experiment(tmp_path, ["--folders", "low, high", "--scales", "-1, 1"])
    with pytest.raises(InputError, match=r"the same in all folders .* nothing to learn"):
        make_plan(settings_of(argv))


def test_names_and_folders_with_the_same_images_are_told(tmp_path):
    root = make_scale_folders(tmp_path, folders=("low", "high"))
    assert "same image" not in remarks(found(root))
    (root / "high" / "one.png").write_bytes((root / "low" / "one.png").read_bytes())
    assert "1 name(s) have the same image in all folders, from which nothing can be learnt: one." in remarks(
        found(root)
    )
    (root / "copy").mkdir()
    for name in ("one", "two"):
        (root / "copy" / f"{name}.png").hardlink_to(root / "high" / f"{name}.png")
    data = found(root, ("low", "high", "copy"), (-1.0, 1.0, 2.0))
    assert "folders 'high' and 'copy' hold the same images" in remarks(data)
    assert "'low'" not in remarks(data)


# --- a folder at scale 0


def test_a_folder_at_0_is_told_and_stays_in_the_plan(tmp_path):
    make_scale_folders(tmp_path, folders=("low", "base", "high"))
    data = found(tmp_path, ("low", "base", "high"), (-1.0, 0.0, 1.0))
    assert data.untrained == 1 and "base → 0" in data.table()
    assert "folder 'base' at scale 0 is not trained on" in remarks(data)
    assert "scale 0" not in remarks(found(tmp_path))


# --- many names, long names


def test_the_plan_shows_some_rows_and_a_dry_run_all(tmp_path, train_main, capsys):
    make_scale_folders(tmp_path / "data", folders=("low", "high"), names=[f"n{i:03}" for i in range(60)], size=(8, 8))
    flags = ["--folders", "low, high", "--scales", "-1, 1", "--iterations", "1"]
    argv = write_experiment(tmp_path, flags, preview=None)
    assert train_main([*argv, "--dry_run"]) == 0
    whole = capsys.readouterr().out
    assert whole.count("8×8") == 60 and "more names" not in whole
    data = make_plan(settings_of(argv)).data
    text = data.table(whole=False)
    assert text.count("8×8") == 20 and "… and 40 more names (--dry_run or logging.verbose: true lists all)" in text
    assert data.describe(PROMPTS)[-1] == text and data.describe(PROMPTS, whole=True)[-1] == data.table()


def test_long_names_and_captions_leave_the_table_readable(tmp_path):
    name = "a" * 200 + "_end"
    make_scale_folders(tmp_path, folders=("low", "high"), names=(name, "b"))
    for short in (name, "b"):
        (tmp_path / "low" / f"{short}.txt").write_text("a disc " * 30)
    data = found(tmp_path)
    assert max(map(len, data.table(whole=False).splitlines())) < 200
    assert "…" in data.table() and "_end.png" in data.table()
    assert ("a disc " * 30).strip() in data.table()  # all of it where all was asked for


def test_many_unreadable_images_are_told_in_few_lines(tmp_path):
    make_scale_folders(tmp_path, folders=("low", "high"), names=[f"n{i:02}" for i in range(30)], size=(8, 8))
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        found(tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 9 and lines[-1].startswith("52 more image(s): cannot be read as an image")


# --- names of folders that contain commas


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"robe, red", base', ("robe, red", "base")),
        ("base, 'robe, red'", ("base", "robe, red")),
        ('"a,b","c,d"', ("a,b", "c,d")),
        ("'\"a, b\", c'", ("a, b", "c")),
        ("'a, b'", ("a", "b")),
        ("'it's, b'", ("it's", "b")),
        ("l'été, d'hiver", ("l'été", "d'hiver")),
        ('6" tall, 7" tall', ('6" tall', '7" tall')),
    ],
)
def test_a_name_in_quotes_may_contain_commas(text, names):
    assert parse_names(text) == names


def test_a_folder_with_a_comma_is_found_in_quotes_and_else_the_quotes_are_named(tmp_path):
    make_scale_folders(tmp_path, folders=("robe, red", "base"))
    assert found(tmp_path, parse_names('"robe, red", base')).folders == ("robe, red", "base")
    with pytest.raises(InputError, match=r"'red' is not a folder .* put a name that contains a comma in double quotes"):
        found(tmp_path, parse_names("robe, red, base"), (-1.0, 0.5, 1.0))


# --- formats


heif = pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif is not installed")


@heif
@pytest.mark.parametrize("suffix", ["heic", "HEIC", "heif", "hif", "jpg"])
def test_heic_is_read_upright_whatever_its_name(tmp_path, suffix):
    from pillow_heif import register_heif_opener

    register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = disc((64, 96), 0.8)
    picture.save(tmp_path / "a", format="HEIF", quality=95, exif=exif.tobytes())
    path = (tmp_path / "a").rename(tmp_path / f"a.{suffix}")
    assert is_image_name(path)
    image = read_image(path)
    turned = np.rot90(np.asarray(picture), -1)
    assert image.size == (96, 64)
    assert np.abs(np.asarray(image).astype(int) - turned).mean() < 4


HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.jpg"])
def test_without_its_package_heic_is_named_with_the_way_to_get_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr(images, "_reads_heif", lambda: False)
    (tmp_path / name).write_bytes(HEAD)
    with pytest.raises(InputError, match=r"HEIC is read with the package pillow-heif: .*heif.* or save it as JPEG"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "image", "reason"),
    [
        ("float.tiff", Image.fromarray(np.zeros((8, 8), np.float32)), "floating-point pixels have no agreed range"),
        ("long.tiff", Image.fromarray(np.full((8, 8), 10**6, np.int32)), "pixels of 32 bits"),
        ("drawing.eps", Image.new("RGB", (8, 8)), "as drawings and films are not"),
    ],
)
def test_formats_that_hold_no_pictures_are_refused_with_the_reason(tmp_path, monkeypatch, name, image, reason):
    monkeypatch.setenv("PATH", "")  # Ghostscript, if it is installed, would draw the EPS
    image.save(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}: .*{reason}"):
        read_image(tmp_path / name)


def test_an_image_that_memory_does_not_suffice_for_is_told_so(tmp_path, monkeypatch):
    disc((64, 64), 0.5).save(tmp_path / "a.png")

    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(images, "_to_rgb", exhausted)
    with pytest.raises(InputError, match=r"a\.png: needs more memory than is free: save it smaller"):
        read_image(tmp_path / "a.png")
