"""The number of OpenMP's threads, which has to be set before torch is imported."""

import os
import subprocess
import sys

import pytest
from sliders.system import processors
from sliders.system.processors import processor_quota, share_processors


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": ""}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processor_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("quota", "available", "processes", "threads"),
    [(2, 64, 1, "2"), (64, 2, 1, None), (None, 64, 1, None), (None, 8, 2, "4"), (6, 64, 2, "3"), (64, 2, 4, "1")],
)
def test_threads_are_limited_only_where_openmp_would_start_more(monkeypatch, quota, available, processes, threads):
    monkeypatch.setattr(os, "environ", {"LOCAL_WORLD_SIZE": str(processes)})
    monkeypatch.setattr(processors, "processor_quota", lambda: quota)
    monkeypatch.setattr(processors, "available_processors", lambda: available)
    share_processors()
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_the_settings_precede_torch_and_leave_the_users_alone():
    code = (
        "import os, sys; from sliders.system import processors;"
        "processors.processor_quota = lambda: 1; processors.available_processors = lambda: 2;"
        "from sliders.system.command import command;"
        "command(lambda _: print('torch' in sys.modules, os.environ['OMP_NUM_THREADS']))([])"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    for given, shown in (({}, "1"), ({"OMP_NUM_THREADS": "5"}, "5")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == f"False {shown}"
