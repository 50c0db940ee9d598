"""pyproject.toml pins the exact version of every package that uv resolves, and nothing else."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WITHOUT_WHEELS = ("dadaptation", "flash-attn")  # the first is pure Python, the second compiles
UNREACHED = ("failed to fetch", "error sending request", "dns error", "network", "timed out")  # in uv's messages


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


def resolved_for(platform: str, python: str, target: Path) -> dict[str, str]:
    """{package: version} that uv would install there, wheels only. Skips if it reaches no registry."""
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    pins = [pin.partition("==")[0] for pin in _uv()["constraint-dependencies"]]
    wheels = [word for name in pins if name not in WITHOUT_WHEELS for word in ("--only-binary", name)]
    words = ["uv", "pip", "install", "--dry-run", "--python-platform", platform, "--python-version", python]
    extras = [".[heif,lpips,optimizers,wandb]", "--group", "dev", "--group", "emoji"]
    done = subprocess.run(
        [*words, "--target", str(target), *wheels, *extras], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode and any(sign in done.stderr.lower() for sign in UNREACHED):
        pytest.skip(f"no package registry is reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^ \+ ([\w.-]+)==(\S+)$", done.stderr, re.MULTILINE))


def _uv() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]


@pytest.mark.parametrize(
    ("platform", "python"),
    [("x86_64-pc-windows-msvc", "3.11"), ("x86_64-pc-windows-msvc", "3.13"), ("aarch64-apple-darwin", "3.12")],
)
def test_every_pin_has_a_wheel_for_other_systems(platform, python, tmp_path, monkeypatch):
    """What uv would install there is pinned, and Windows gets a Triton of the version that PyTorch for Linux brings."""
    monkeypatch.setenv("MACOSX_DEPLOYMENT_TARGET", "14.0")  # the oldest that PyTorch supports
    found = resolved_for(platform, python, tmp_path / "none")
    pins = dict(pin.split("==") for pin in _uv()["constraint-dependencies"])
    assert len(found) > 80 and found["torch"] == pins["torch"]
    assert {name: version for name, version in found.items() if pins.get(name) != version} == {}
    if "windows" in platform:
        assert found["triton-windows"].startswith(f"{pins['triton']}.post")
        assert found["colorama"] == pins["colorama"]


def test_an_environment_with_a_pytorch_of_its_own_keeps_it():
    """`dependencies` name a range; the exact version stands among the constraints, which only uv's projects read."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert [d for d in wanted if d.startswith("torch")] == ["torch>=2.8"]
