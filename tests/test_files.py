"""A file under its final name is whole."""

import os
from pathlib import Path

import pytest
from sliders import files
from sliders.errors import InputError
from sliders.files import check_folder, remove_leftovers, written_whole


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "slider.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), written_whole(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("the disk is full")
    assert path.read_bytes() == b"old"
    with written_whole(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def refuse(times, error):
    """A function that raises so often, and then does what the method would have."""
    left = iter([error] * times)

    def maybe(method):
        def call(path, *arguments, **named):
            for problem in left:
                raise problem
            return method(path, *arguments, **named)

        return call

    return maybe


def test_a_file_that_others_look_into_gets_its_name_as_soon_as_they_let_go(tmp_path, monkeypatch):
    """As on Windows, where a virus scanner keeps a file for a moment."""
    path = tmp_path / "slider.safetensors"
    held = PermissionError(13, "Access is denied")
    monkeypatch.setattr(Path, "replace", refuse(2, held)(Path.replace))
    with pytest.raises(PermissionError), written_whole(path) as temporary:
        temporary.write_bytes(b"kept from its name")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(files, "PATIENCE", 60)
    with written_whole(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_what_another_program_has_open_stays_with_a_warning(tmp_path, monkeypatch, capsys):
    paths = [tmp_path / "one.tmp", tmp_path / "one two.tmp", tmp_path / "other.tmp"]
    for path in paths:
        path.touch()
    monkeypatch.setattr(Path, "unlink", refuse(1, PermissionError(13, "Access is denied"))(Path.unlink))
    remove_leftovers(tmp_path, "one")
    assert paths[2].exists() and sum(path.exists() for path in paths) == 2
    said = capsys.readouterr().out
    assert "warning: " in said and "one" in said and "Access is denied" in said


def test_a_folder_is_tried_without_a_trace(tmp_path):
    for path in (tmp_path, tmp_path / "new" / "folder"):
        check_folder(path, "--out", "choose another")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out: .*file is a file, not a folder: choose another\."):
        check_folder(tmp_path / "file" / "below", "--out", "choose another")


def test_a_drive_that_is_not_there_is_told_so(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(InputError, match=r"--out: .* is not there: choose another\."):
        check_folder(Path("/sliders"), "--out", "choose another")


@pytest.mark.parametrize("base", [Path("/"), None])
def test_paths_that_are_too_long_for_windows_are_told_before_training(tmp_path, monkeypatch, base):
    """Below the root of a drive too, of which little can be tried."""
    folder = (base or tmp_path) / "run"
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files, "_try_to_write", lambda *_: None)
    monkeypatch.setattr(files, "_long_paths", lambda: False)
    room = 259 - len(str(folder / ".tmp"))
    check_folder(folder, "save.path", "choose another", "x" * room)
    with pytest.raises(InputError, match=r"save.path: .* up to 260 .* takes 259: choose another, a shorter one\."):
        check_folder(folder, "save.path", "choose another", "x" * (room + 1))
    monkeypatch.setattr(files, "_long_paths", lambda: True)
    check_folder(folder, "save.path", "choose another", "x" * (room + 1))


@pytest.mark.parametrize("new", [False, True])
def test_a_folder_is_tried_on_windows_without_a_trace(tmp_path, monkeypatch, new):
    """With what stands for a file that is gone when it is closed."""
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "O_TEMPORARY", 0, raising=False)
    opened, made = [], []
    monkeypatch.setattr(os, "open", lambda path, flags, _open=os.open: opened.append(path) or _open(path, flags))
    monkeypatch.setattr(Path, "mkdir", lambda path, _mkdir=Path.mkdir: made.append(path) or _mkdir(path))
    check_folder(tmp_path / "new" if new else tmp_path, "--out", "choose another")
    for path in opened:
        path.unlink()
    assert (len(opened), len(made)) == ((0, 1) if new else (1, 0))
    assert list(tmp_path.iterdir()) == []


def test_files_are_synced_as_bytes(tmp_path, monkeypatch):
    """Or Windows would cut off a last byte of 0x1A. With a flag of Linux that changes nothing here."""
    seen = []
    monkeypatch.setattr(files, "BINARY", os.O_SYNC)
    monkeypatch.setattr(os, "open", lambda path, flags, _open=os.open: seen.append((path, flags)) or _open(path, flags))
    with written_whole(tmp_path / "slider") as temporary:
        temporary.write_bytes(b"\x1a")
    assert [flags & os.O_SYNC == os.O_SYNC for path, flags in seen if path == temporary] == [True]


def test_a_temporary_file_that_stays_hides_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "unlink", refuse(1, PermissionError(13, "Access is denied"))(Path.unlink))
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "slider") as temporary:
        temporary.touch()
        raise KeyboardInterrupt
