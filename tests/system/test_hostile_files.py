"""Names and files that are hostile, or look hostile: they work, or are refused with a message."""

import errno
import os
import struct
import tempfile
import zlib
from pathlib import Path

import pytest
from conftest import disc, make_scale_folders, write_experiment
from experiments import experiment, settings_of
from PIL import Image
from sliders.config.schema import Data, Save
from sliders.data.dataset import ScaleFolders
from sliders.data.images import read_image
from sliders.system.errors import InputError
from sliders.system.lock import check_unlocked, locked

posix = pytest.mark.skipif(os.name != "posix", reason="this system does not allow such names")


def data_named(tmp_path, name):
    for folder in ("low", "high"):
        (tmp_path / folder).mkdir()
        disc((64, 64), 0.5).save(tmp_path / folder / name, format="PNG")
    return ScaleFolders.find(Data(folder_main=tmp_path, folders=("low", "high"), scales=(-1.0, 1.0)), 32)


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
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "one.png")
    with pytest.raises(InputError, match="a pipe or a device"):
        read_image(tmp_path / "one.png")


def test_photos_of_108_megapixels_are_read(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (12_000, 9_000)).save(path)
    assert read_image(path).size == (12_000, 9_000)


def test_more_pixels_than_any_camera_takes_are_refused_with_the_limit(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (8, 8)).save(path)
    raw = path.read_bytes()
    head = b"IHDR" + struct.pack(">II", 20_000, 20_000) + raw[24:29]
    path.write_bytes(raw[:12] + head + struct.pack(">I", zlib.crc32(head)) + raw[33:])
    with pytest.raises(
        InputError, match=r"large.png: has 400 million pixels, but at most 250 million are read: save it"
    ):
        read_image(path)


@posix
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nowhere.png", "No such file or directory; it is a link to nowhere.png"),
        ("one.png", "Too many levels of symbolic"),
    ],
)
@pytest.mark.parametrize("place", ["low/one.png", "low/one.txt", "low", "captions", ""])
def test_links_that_lead_nowhere_are_refused_with_the_systems_reason(tmp_path, place, target, reason):
    root = make_scale_folders(tmp_path / "data", folders=("low", "high"), names=("one",))
    path = root / place
    if path.exists():
        path.rename(tmp_path / "away")
    path.symlink_to(path if target == "one.png" else target)
    with pytest.raises(InputError) as caught:
        ScaleFolders.find(Data(folder_main=root, folders=("low", "high"), scales=(-1.0, 1.0)), 32)
    assert reason in str(caught.value) and str(place or root) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("place", ["low/one.png", "low/one.txt", "low", "captions", ""])
def test_what_may_not_be_opened_is_refused_with_the_systems_reason(place):
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies in a folder that nobody else may enter
        Path(folder).chmod(0o755)
        root = make_scale_folders(Path(folder) / "data", folders=("low", "high"), names=("one",))
        for caption in (root / "low" / "one.txt", root / "captions" / "one.txt"):
            caption.parent.mkdir(exist_ok=True)
            caption.write_text("a disc")
        (root / place).chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(InputError, match="Permission denied") as caught:
                ScaleFolders.find(Data(folder_main=root, folders=("low", "high"), scales=(-1.0, 1.0)), 32)
        finally:
            os.seteuid(0)
    assert str(place or root) in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["..", ".", "../up", "a/b", "a\\b", "C:x", "a>b", "x\n", "", " ", "nul\0", "n" * 121, "a:1"]
)
def test_names_of_runs_that_are_unsafe_are_refused(name):
    with pytest.raises(ValueError, match=r"leave them out|must not|is the most"):
        Save(name=name)


@pytest.mark.parametrize("name", ["robe 🧥 l'été", "[a] b", "n" * 120])
def test_names_of_runs_stay_inside_the_save_path(tmp_path, train_main, name):
    argv = write_experiment(
        tmp_path, data=make_scale_folders(tmp_path / "data"), flags=["--name", name, "--iterations", "1"]
    )
    settings = settings_of(argv)
    assert train_main(argv) == 0
    assert [p.resolve() for p in (tmp_path / "models").iterdir()] == [settings.run_dir.resolve()]
    assert train_main([*argv, "--resume"]) == 0  # checkpoints are found under such a name


def test_a_lock_removes_the_folders_it_created_that_stayed_empty(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_a_second_run_into_a_folder_is_refused_and_checking_creates_nothing(tmp_path):
    check_unlocked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        for second in (check_unlocked, lambda folder: locked(folder).__enter__()):
            with pytest.raises(InputError, match="another process is training into it: wait for it, stop it, or"):
                second(tmp_path)
    (tmp_path / ".lock").touch()  # as a killed run leaves it
    check_unlocked(tmp_path)
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS])
def test_on_a_file_system_without_locks_training_goes_on_with_a_note(tmp_path, monkeypatch, capsys, error):
    import fcntl

    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "a"):
        assert f"has no locks ({os.strerror(error)}): start no second run" in capsys.readouterr().out
        check_unlocked(tmp_path / "a")
    assert not list(tmp_path.iterdir())
