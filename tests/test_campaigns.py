"""Short runs of the campaigns in tests/campaigns. The full ones are commands."""

import sys

import pytest
from campaigns import fuzz, kill, soak


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
