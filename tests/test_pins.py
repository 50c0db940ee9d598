"""pyproject.toml pins the exact version of every package that uv resolves, and nothing else."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_what_uv_resolved_equals_the_pins():
    lock = ROOT / "uv.lock"
    if not lock.exists():
        pytest.skip("uv has written no lock file here: the tests were started without uv")
    resolved = {
        p["name"]: p["version"] for p in tomllib.loads(lock.read_text())["package"] if "registry" in p["source"]
    }
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    wanted = sorted(f"{name}=={version}" for name, version in resolved.items())
    assert pins == wanted, "pins to paste:\n" + "\n".join(f'    "{pin}",' for pin in wanted)


def test_no_registry_host_is_tracked():
    assert "uv.lock" in (ROOT / ".gitignore").read_text().split()
    assert "://" not in (ROOT / "pyproject.toml").read_text()
