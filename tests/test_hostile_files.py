"""Names and files that mean harm, or only look like it: they work, or are refused with a sentence."""

import os

import pytest
from conftest import disc, make_scale_folders, write_experiment
from PIL import Image
from sliders.dataset import ScaleFolders
from sliders.errors import InputError
from sliders.images import read_image
from sliders.lock import locked
from sliders.schema import Data, Save
from test_resume import experiment, settings_of

posix = pytest.mark.skipif(os.name != "posix", reason="such names cannot be on this system")


def data_named(tmp_path, name):
    for folder in ("low", "high"):
        (tmp_path / folder).mkdir()
        disc((64, 64), 0.5).save(tmp_path / folder / name, format="PNG")
    return ScaleFolders.find(Data(folder_main=tmp_path, folders=("low", "high"), scales=(-1.0, 1.0)))


@posix
@pytest.mark.parametrize(
    "name",
    ['it\'s "fine".png', "🧥👩‍🚀.png", "a..b.png", "a;rm -rf *.png", "%s{x}$HOME.png", "n" * 251 + ".png", "-rf.png"],
)
def test_odd_names_of_images_work(tmp_path, name):
    data = data_named(tmp_path, name)
    assert [path.name for path in data.files[0]] == [name, name]
    assert set(data.digests) == {f"low/{name}", f"high/{name}"}


@posix
@pytest.mark.parametrize(
    "name", ["two\nlines.png", "\x1b[2Jgone.png", "tab\t.png", "\u2028.png", os.fsdecode(b"\xff.png")]
)
def test_names_that_cannot_be_printed_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="holds signs that cannot be printed: rename it") as error:
        data_named(tmp_path, name)
    assert len(str(error.value).splitlines()) == 1


@posix
def test_links_out_of_the_folder_are_read_and_never_written_to(tmp_path, train_main):
    argv = experiment(tmp_path / "run", iterations=1)
    outside = tmp_path / "outside.png"
    linked = tmp_path / "data" / "low" / "one.png"
    linked.rename(outside)
    linked.symlink_to(outside)
    before = outside.read_bytes()
    assert train_main(argv) == 0
    assert linked.is_symlink() and outside.read_bytes() == before


@posix
@pytest.mark.parametrize("target", ["nowhere.png", "one.png", "/dev/zero"])
def test_links_to_nothing_to_themselves_or_to_a_device_are_refused(tmp_path, train_main, capsys, target):
    argv = experiment(tmp_path / "run")
    path = tmp_path / "data" / "low" / "one.png"
    path.unlink()
    path.symlink_to(target)
    assert train_main(argv) == 2
    assert "low/one.png: " in capsys.readouterr().err


@posix
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "one.png")
    with pytest.raises(InputError, match="a pipe or a device"):
        read_image(tmp_path / "one.png")


def test_a_hundred_megapixels_are_refused(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with pytest.raises(InputError, match=r"large.png: has more pixels than Pillow takes for safe: save it smaller"):
        read_image(path)


@pytest.mark.parametrize(
    "name", ["..", ".", "../up", "a/b", "a\\b", "C:x", "a>b", "x\n", "", " ", "nul\0", "n" * 121, "a:1"]
)
def test_names_of_runs_that_are_unsafe_are_refused(name):
    with pytest.raises(ValueError, match=r"leave them out|must not|is the most"):
        Save(name=name)


@pytest.mark.parametrize("name", ["robe 🧥 l'été", "[a] {b}", "n" * 120])
def test_names_of_runs_stay_inside_the_save_path(tmp_path, train_main, name):
    argv = write_experiment(
        tmp_path, data=make_scale_folders(tmp_path / "data"), flags=["--name", name, "--iterations", "1"]
    )
    settings = settings_of(argv)
    assert train_main(argv) == 0
    assert [p.resolve() for p in (tmp_path / "models").iterdir()] == [settings.run_dir.resolve()]
    assert train_main([*argv, "--resume"]) == 0  # states are found by such a name


def test_a_lock_leaves_no_folder_that_nobody_filled(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["kept"]


@posix
def test_a_file_system_without_locks_is_trained_into_and_told_of(tmp_path, monkeypatch, capsys):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "a"):
        assert "knows no locks (No locks available): start no second run" in capsys.readouterr().out
