"""Importing a run's libraries, which take up most of its start."""

import subprocess
import sys

START = """
from sliders.system.progress import importing_libraries
with importing_libraries():
    from sliders.train.runs import run_all
with importing_libraries():
    pass
"""


def test_the_line_that_explains_the_wait_precedes_it_and_comes_once():
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    assert done.stdout == "now     importing PyTorch and the model libraries\n"
