"""A file under its final name is complete."""

import contextlib
import os
from pathlib import Path

import pytest
from sliders.system import files
from sliders.system.errors import InputError
from sliders.system.files import atomic_write, check_folder, remove_leftovers


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "slider.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("the disk is full")
    assert path.read_bytes() == b"old"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def refuse_once(method):
    """`method`, but its first call raises PermissionError."""
    errors = [PermissionError(13, "Access is denied")]

    def call(*arguments, **named):
        if errors:
            raise errors.pop()
        return method(*arguments, **named)

    return call


def test_a_rename_that_fails_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", refuse_once(Path.replace))
    with pytest.raises(PermissionError), atomic_write(tmp_path / "slider") as temporary:
        temporary.write_bytes(b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_removed_stays_with_a_warning(tmp_path, monkeypatch, capsys):
    paths = [tmp_path / "one.tmp", tmp_path / "one two.tmp", tmp_path / "other.tmp"]
    for path in paths:
        path.touch()
    monkeypatch.setattr(Path, "unlink", refuse_once(Path.unlink))
    remove_leftovers(tmp_path, "one")
    assert paths[2].exists() and sum(path.exists() for path in paths) == 2
    said = capsys.readouterr().out
    assert "warning: " in said and "one" in said and "Access is denied" in said


def test_checking_a_folder_leaves_no_trace(tmp_path):
    for path in (tmp_path, tmp_path / "new" / "folder"):
        check_folder(path, "--out", "choose another")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out: .*file is a file, not a folder: choose another\."):
        check_folder(tmp_path / "file" / "below", "--out", "choose another")


def test_a_drive_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(InputError, match=r"--out: .* does not exist: choose another\."):
        check_folder(Path("/sliders"), "--out", "choose another")


@pytest.mark.parametrize("base", [Path("/"), None])
def test_paths_that_are_too_long_for_windows_are_refused_before_training(tmp_path, monkeypatch, base):
    """Also directly below the root of a drive."""
    folder = (base or tmp_path) / "run"
    monkeypatch.setattr(files, "WINDOWS", True)
    room = 259 - len(str(folder / ".tmp"))
    check_folder(folder, "save.path", "choose another", "x" * room)
    with pytest.raises(InputError, match=r"save.path: .* have 260 .* allows 259: choose another, a shorter one\."):
        check_folder(folder, "save.path", "choose another", "x" * (room + 1))


@pytest.mark.parametrize(("refused", "waits"), [(2, [0.05, 0.1]), (9, [0.05, 0.1, 0.2, 0.4, 0.8])])
def test_on_windows_a_file_that_is_open_elsewhere_is_renamed_a_moment_later(tmp_path, monkeypatch, refused, waits):
    """A stand-in refuses as Windows does. Whatever happens, the file is complete or as it was."""
    slept, calls = [], []

    def replace(source, target, _replace=Path.replace):
        calls.append(source)
        if len(calls) <= refused:
            raise PermissionError(13, "Access is denied")
        return _replace(source, target)

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files.time, "sleep", slept.append)
    monkeypatch.setattr(Path, "replace", replace)
    path = tmp_path / "slider"
    path.write_text("old")
    with contextlib.suppress(PermissionError), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert slept == waits
    assert path.read_text() == ("new" if refused == 2 else "old") and [*tmp_path.iterdir()] == [path]


def test_files_are_synced_as_bytes(tmp_path, monkeypatch):
    """Windows would otherwise cut off a last byte of 0x1A. A harmless Linux flag stands in for its binary flag."""
    seen = []
    monkeypatch.setattr(files, "BINARY", os.O_SYNC)
    monkeypatch.setattr(os, "open", lambda path, flags, _open=os.open: seen.append((path, flags)) or _open(path, flags))
    with atomic_write(tmp_path / "slider") as temporary:
        temporary.write_bytes(b"\x1a")
    assert [flags & os.O_SYNC == os.O_SYNC for path, flags in seen if path == temporary] == [True]


def test_a_temporary_file_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "unlink", refuse_once(Path.unlink))
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "slider") as temporary:
        temporary.touch()
        raise KeyboardInterrupt
