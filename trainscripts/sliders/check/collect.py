"""Asks the machine: first what is quickly known, then PyTorch, and with `--test` a step of the tiny model."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from sliders.check.report import Card, Disk, Report, Torch
from sliders.system.errors import first_line
from sliders.system.files import existing
from sliders.system.processors import available_processors, processor_quota
from sliders.train.memory import GIB

PATIENCE = 10  # seconds for nvidia-smi, which a broken driver may keep waiting
ASKED = "name,memory.total,memory.free,compute_cap,driver_version"
PACKAGES = ("diffusers", "transformers", "bitsandbytes", "triton", "triton-windows", "xformers", "flash-attn")
OPTIONAL = ("triton", "triton-windows", "xformers", "flash-attn")  # not worth a word where they are not installed


def known_at_once() -> Report:
    """Everything that needs no PyTorch."""
    driver, cards = ask_driver()
    versions = {name: _version(name) for name in PACKAGES}
    return Report(
        system=system(), python=platform.python_version(),
        processors=min(available_processors(), processor_quota() or sys.maxsize), driver=driver, cards=cards,
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES", ""), disks=_disks(), torch_version=_version("torch"),
        packages=tuple((n, v) for n, v in versions.items() if v or n not in OPTIONAL),
    )  # fmt: skip


def system() -> str:
    if sys.platform == "win32":
        return "Windows"
    if sys.platform == "darwin":
        return "macOS"
    if "microsoft" in platform.release().lower():
        return "WSL"
    return "container" if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() else "Linux"


def ask_driver() -> tuple[str | None, tuple[Card, ...]]:
    """(driver's version, cards) as `nvidia-smi` says; (None, ()) without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, ()
    words = [program, f"--query-gpu={ASKED}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None, ()
    return read_answer(done.stdout) if done.returncode == 0 else (None, ())


def read_answer(text: str) -> tuple[str | None, tuple[Card, ...]]:
    """nvidia-smi's lines of `ASKED`, with memory in MiB. Lines that are none are left out."""
    driver, cards = None, []
    for line in text.splitlines():
        try:
            name, total, free, capability, driver_here = (word.strip() for word in line.rsplit(",", 4))
            major, minor = map(int, capability.split("."))
            cards.append(Card(name, int(total) * 2**20, int(free) * 2**20, (major, minor)))
            driver = driver_here
        except ValueError:
            continue
    return driver, tuple(cards)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _disks() -> tuple[Disk, ...]:
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    places = (("models from the hub", cache, 8 * GIB), ("sliders", Path.cwd(), 4 * GIB))
    return tuple(Disk(w, str(p), shutil.disk_usage(existing(p)).free, needed) for w, p, needed in places)


def with_torch(report: Report) -> Report:
    """Imports PyTorch, which takes seconds, and asks it."""
    try:
        import torch

        cards = torch.cuda.device_count()
        architectures = tuple(torch.cuda.get_arch_list()) if torch.version.cuda else ()
        found = Torch(torch.__version__, torch.version.cuda, architectures, cards, _start_problem(cards))
    except Exception as error:  # a broken installation may raise anything
        found = Torch("", None, (), 0, first_line(error))
    return replace(report, torch=found)


def _start_problem(cards: int) -> str:
    """What CUDA says when it starts on the first card, or ''."""
    import torch

    if not cards and torch.version.cuda is None:
        return ""
    try:
        if cards or shutil.which("nvidia-smi"):
            torch.zeros(1, device="cuda:0")
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return ""
