"""A file under its final name is whole."""

import pytest
from sliders.files import written_whole


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
