"""A run whose input or output is closed goes on, and nothing that it prints gets into its files."""

import os
import subprocess
import sys

import pytest
from conftest import SCRIPTS

PROGRAM = """
import os, sys
from sliders.system.command import command

@command
def main(argv):
    opened = os.open(argv[0], os.O_WRONLY | os.O_CREAT)
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    os.write(opened, f"{opened > 2} {sys.stdin.read()!r}".encode())

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="`>&-` is a POSIX shell's")
@pytest.mark.parametrize("closed", ["", "0", "1", "2", "01", "12", "012"])
def test_closed_streams_are_opened_on_nothing(tmp_path, closed):
    redirections = "".join(f" {n}{'<' if n == '0' else '>'}&-" for n in closed)
    given = [sys.executable, "-c", PROGRAM, str(tmp_path / "file")]
    line = f'exec "$0" "$@"{redirections}'
    done = subprocess.run(["sh", "-c", line, *given], capture_output=True, text=True, input="", check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "True ''"
    assert done.stdout == ("" if "1" in closed else "to stdout\n")
    assert done.stderr == ("" if "2" in closed else "to stderr\n")


@pytest.mark.parametrize(("closed", "status"), [(">&-", 2), ("2>&-", 2), ("<&-", 2), (">&- 2>&- <&-", 2)])
def test_a_command_answers_wrong_input_without_its_streams(closed, status):
    words = [
        sys.executable,
        str(SCRIPTS / "train_lora-scale-xl.py"),
        "--config_file",
        "nowhere.yaml",
        "--folder_main",
        "x",
    ]
    done = subprocess.run(["sh", "-c", f'exec "$0" "$@" {closed}', *words], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "Traceback" not in done.stdout + done.stderr
    assert ("nowhere.yaml cannot be read" in done.stderr) == ("2>&-" not in closed)
