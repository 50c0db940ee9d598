"""The check command: made-up machines, and this one. None of the cards is here; what they can do is from NVIDIA's tables."""

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from conftest import script_main, write_experiment
from sliders.check import collect
from sliders.check.findings import DRIVER, fitting, page, problems
from sliders.check.report import Card, Disk, Report, Torch, Trial
from sliders.check.trial import tried
from sliders.config.schema import Other, PretrainedModel, Train
from sliders.train.memory import GIB

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")  # of PyTorch 2.13 for CUDA 13
TORCH = Torch("2.13.0+cu130", "13.0", ARCHITECTURES, 1)
PACKAGES = (("diffusers", "0.42.1"), ("bitsandbytes", "0.50.2"), ("triton", "3.7.1"))
CARDS = {  # name: (GiB, compute capability)
    "NVIDIA GeForce RTX 2060": (6, (7, 5)),
    "NVIDIA GeForce RTX 3060": (12, (8, 6)),
    "NVIDIA GeForce RTX 4090": (24, (8, 9)),
    "NVIDIA GeForce RTX 5090": (32, (12, 0)),
    "Tesla T4": (15, (7, 5)),
}


def machine(name: str | None, system="Linux", **changes) -> Report:
    """A machine with one of `CARDS`, or without a card, on which all is well."""
    cards = ()
    if name:
        size, capability = CARDS[name]
        cards = (Card(name, size * GIB, int(0.95 * size * GIB), capability),)
    torch = TORCH if name else replace(TORCH, cards=0)
    driver = "580.95" if name else None
    disks = (Disk("models from the hub", "/cache", 100 * GIB, 8 * GIB),)
    report = Report(system, "3.12.3", 8, driver, cards, "", disks, "2.13.0", PACKAGES, torch)
    return replace(report, **changes)


def config_of(report: Report) -> dict:
    """The page's config lines, read as YAML, and checked as settings."""
    lines = page(report)
    start = next(i for i, line in enumerate(lines) if line.startswith("config"))
    found: dict = {}
    for line in lines[start + 1 :]:
        if line.startswith("          ") and ": {" in line:
            for section, values in yaml.safe_load(line).items():
                found.setdefault(section, {}).update(values)
    Train(**found.get("train", {}))
    Other(**found.get("other", {}))
    PretrainedModel(name_or_path="x", **found.get("pretrained_model", {}))
    return found


@pytest.mark.parametrize(
    ("name", "size", "config"),
    [
        ("NVIDIA GeForce RTX 2060", 512, {"train": {"precision": "float32", "optimizer": "adamw8bit"},
            "other": {"gradient_checkpointing": True}, "pretrained_model": {"quantize": "nf4"}}),
        ("NVIDIA GeForce RTX 3060", 1024, {"other": {"gradient_checkpointing": True}}),
        ("NVIDIA GeForce RTX 4090", 1024, {}),
        ("NVIDIA GeForce RTX 5090", 1024, {}),
        ("Tesla T4", 1024, {"train": {"precision": "float32"}, "other": {"gradient_checkpointing": True},
            "pretrained_model": {"quantize": "int8"}}),
    ],
)  # fmt: skip
def test_the_config_lines_fit_the_card(name, size, config):
    report = machine(name)
    demand, found = fitting(report.cards[0], report)
    assert demand.peak < report.cards[0].total
    assert (config_of(report), found) == (config, size)
    assert (f"--resolution {size}" in "\n".join(page(report))) == (size != 1024)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_without_bfloat16_says_so_and_others_have_nothing_to_do(name):
    report = machine(name)
    text = "\n".join(page(report))
    assert f"{name}, {CARDS[name][0]}.0 GiB" in text
    new = CARDS[name][1] >= (8, 0)
    assert ("; no bfloat16;" in text) == (not new)
    assert problems(report) == (
        []
        if new
        else [f"{name} has no bfloat16: set `train: {{precision: float32}}`, or steps take many times as long."]
    )
    assert "\nall is well" in text if new else "\nto do   " in text  # fmt: skip


@pytest.mark.parametrize("system", DRIVER)
def test_without_a_card_the_remedy_is_the_systems(system):
    (problem,) = problems(machine(None, system))
    assert problem == f"no NVIDIA driver answers: if there is an NVIDIA card, {DRIVER[system]}."
    assert "config  no GPU" in "\n".join(page(machine(None, system)))


def todo(name, **changes) -> str:
    return "\n".join(problems(machine(name, **changes)))


def test_a_pytorch_without_kernels_for_the_card_is_replaced():
    old = replace(TORCH, version="2.6.0+cu124", cuda="12.4", architectures=("sm_50", "sm_80", "sm_86", "sm_90"))
    command = "`uv pip install --torch-backend=auto --reinstall-package torch torch==2.6.0`"
    found = todo("NVIDIA GeForce RTX 5090", torch=old)
    assert f"no kernels for NVIDIA GeForce RTX 5090 (sm_120): once, {command}" in found
    assert todo("NVIDIA GeForce RTX 4090", torch=old) == ""  # runs the kernels of sm_86
    assert todo("NVIDIA GeForce RTX 5090", torch=replace(TORCH, architectures=())) == ""  # it does not say
    pascal = Card("NVIDIA GeForce GTX 1080 Ti", 11 * GIB, 11 * GIB, (6, 1))
    assert "(sm_61): once, `uv pip install --torch-backend=cu126 " in todo("Tesla T4", cards=(pascal,))


@pytest.mark.parametrize(
    ("architectures", "capability", "supported"),
    [
        (("sm_86",), (8, 9), True),
        (("sm_89",), (8, 6), False),
        (("sm_80",), (9, 0), False),
        (("compute_80",), (9, 0), True),
        (("compute_90",), (8, 9), False),
        (("sm_90a",), (9, 0), True),
        ((), (8, 0), False),
    ],
)
def test_kernels_run_on_later_cards_of_a_generation_and_code_on_all_later_ones(architectures, capability, supported):
    assert replace(TORCH, architectures=architectures).supports(Card("any", 1, 1, capability)) == supported


def test_problems_of_driver_and_pytorch_come_with_the_command():
    card = "NVIDIA GeForce RTX 4090"
    assert "too old for CUDA 13.0, which needs 580" in todo(card, driver="550.54")
    assert "--torch-backend=auto" in todo(card, driver="550.54")
    cpu = replace(TORCH, version="2.13.0+cpu", cuda=None, architectures=(), cards=0)
    assert "this PyTorch cannot use a GPU: once, `uv pip install --torch-backend=auto --reinstall-package torch torch==2.13.0`" in todo(
        card, torch=cpu
    )  # fmt: skip
    none = replace(TORCH, cards=0, problem="CUDA unknown error")
    assert "CUDA_VISIBLE_DEVICES is '-1', which hides the GPU" in todo(card, torch=none, hidden="-1")
    assert "finds no GPU although the driver lists one (CUDA unknown error): restart" in todo(card, torch=none)
    broken = Torch("", None, (), 0, "libcublas.so.13: cannot open shared object file")
    assert "could not be imported (libcublas.so.13" in todo(card, torch=broken)


def test_what_is_missing_or_short_is_named():
    card = "NVIDIA GeForce RTX 4090"
    without = todo(card, packages=(("bitsandbytes", None),))
    assert "`uv pip install bitsandbytes`" in without and "`uv pip install triton`" in without
    assert "`uv pip install triton-windows`" in todo(card, packages=(), system="Windows")
    assert "Sysmem Fallback" in todo(card, system="WSL") and "Sysmem" not in todo(card)
    assert "set HF_HOME" in todo(card, disks=(Disk("models from the hub", "/cache", GIB, 8 * GIB),))
    busy = Card(card, 24 * GIB, 10 * GIB, (8, 9))
    assert "other programs use 14.0 of 24.0 GiB of GPU 0" in todo(card, cards=(busy,))
    failed = Trial("cuda:0", None, None, False, 0, 0, "no kernel image is available")
    assert "the step of the tiny model failed: no kernel image is available" in todo(card, trial=failed)


def test_the_answer_of_nvidia_smi_is_read():
    text = "NVIDIA H200, 143771, 143156, 9.0, 580.126.20\nOdd, Name, 6144, 5000, 7.5, 580.126.20\nno such line\n"
    driver, cards = collect.read_answer(text)
    assert driver == "580.126.20"
    assert cards == (
        Card("NVIDIA H200", 143771 * 2**20, 143156 * 2**20, (9, 0)),
        Card("Odd, Name", 6144 * 2**20, 5000 * 2**20, (7, 5)),
    )
    assert collect.read_answer("No devices were found\n") == (None, ())


FIRST = """
import sys
from sliders.check.collect import known_at_once
from sliders.check.findings import first_lines
import sliders.commands
print(*first_lines(known_at_once()), sep="\\n")
sys.exit("torch" in sys.modules)
"""


def test_the_first_lines_do_not_wait_for_pytorch():
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("system  ") and "\nwith    torch 2." in done.stdout


def test_the_command_prints_the_page_of_this_machine(capsys):
    assert script_main("check")([]) == 0
    out = capsys.readouterr().out
    assert [
        word for word in ("system ", "driver ", "disk ", "torch ", "config ", "more ") if f"\n{word}" not in f"\n{out}"
    ] == []
    assert script_main("check")(["--tests"]) == 2
    assert "did you mean --test" in capsys.readouterr().err


def test_a_trial_compares_steps_of_the_tiny_model_with_pytorchs_operations():
    found = tried("cpu", "float32")
    assert found.problem == "" and found.seconds > 0 and not found.captured
    assert 0 <= found.apart < 1e-4
    assert tried("cpu", "bfloat17").problem


def test_the_trainer_names_the_check_where_a_gpu_is_missing(tmp_path, train_main, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    argv = write_experiment(tmp_path, ["--device", "0"], pretrained_model={"quantize": "nf4"})
    assert train_main(argv) == 2
    assert "`uv run trainscripts/imagesliders/check.py` says why" in capsys.readouterr().err
