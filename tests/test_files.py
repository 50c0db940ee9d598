"""A file under its final name is whole."""

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


def test_paths_that_are_too_long_for_windows_are_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WINDOWS", True)
    probe = files._probe

    def of_windows(path, as_file):
        if len(str(path)) > 259:
            raise FileNotFoundError(2, "No such file or directory")
        probe(path, as_file)

    monkeypatch.setattr(files, "_probe", of_windows)
    room = 259 - len(str(tmp_path / "run" / ".tmp"))
    check_folder(tmp_path / "run", "save.path", "choose another", "x" * room)
    with pytest.raises(
        InputError, match=r"save.path: .* 260 characters, more than Windows takes: choose another, a sh"
    ):
        check_folder(tmp_path / "run", "save.path", "choose another", "x" * (room + 1))
    assert list(tmp_path.iterdir()) == []
