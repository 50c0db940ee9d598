"""A report on a machine → lines of text: what was found, which lines of the config fit, and what to do about each problem.

Nothing here asks the machine, so every card can be tried in tests. The remedies are those of PyTorch's, NVIDIA's and Microsoft's
documentation; none of those for Windows and WSL has been run.
"""

from collections.abc import Iterator
from dataclasses import replace

from sliders.check.report import AMPERE, CUDA_13_FROM, TURING, Card, Report, names_of
from sliders.system.installation import how_to_run
from sliders.train.memory import GIB, SDXL, SDXL_PARAMETERS, Demand, gib

NO_BFLOAT16 = "float32"  # train.precision of cards that compute bfloat16 in float32's time or more
SCREEN = 0.7 * GIB  # that Windows, a desktop and CUDA itself keep from a card; an estimate
INSTALL = "uv pip install --torch-backend={} --reinstall-package torch torch=={}"
DRIVER = {
    "Windows": "install NVIDIA's driver for the card from nvidia.com/drivers, then restart Windows",
    "WSL": "install NVIDIA's driver in Windows, none inside WSL, then run `wsl --update` and `wsl --shutdown` in PowerShell",
    "container": "start the container with `--gpus all`, on a machine with NVIDIA's driver and the NVIDIA Container Toolkit",
    "Linux": "install NVIDIA's driver (Ubuntu: `sudo ubuntu-drivers install`), then restart the machine",
}


def first_lines(report: Report) -> Iterator[str]:
    """What is known before PyTorch is imported."""
    yield f"system  {report.system}, Python {report.python}, {report.processors} processors"
    yield f"driver  {f'NVIDIA {report.driver}' if report.driver else 'no NVIDIA driver answers'}"
    for number, card in enumerate(report.cards):
        yield f"GPU {number}   {card.name}, {gib(card.total)} GiB, {gib(card.free)} free, {card.architecture}"
    for disk in report.disks:
        yield f"disk    {disk.free / GIB:.0f} GiB free for {disk.what}: {disk.path}"
    found = ", ".join(f"{name} {version or 'is missing'}" for name, version in report.packages)
    yield f"with    torch {report.torch_version or 'is missing'}, {found}"


def torch_lines(report: Report) -> Iterator[str]:
    """What PyTorch says of itself and of the cards."""
    torch = report.torch
    if torch is None:
        return
    build = f"CUDA {torch.cuda}" if torch.cuda else "no CUDA"
    yield f"torch   {torch.version}, built for {build}, uses {torch.cards} GPU(s)"
    if torch.architectures:
        yield f"        has kernels for {' '.join(torch.architectures)}"
    for number, card in enumerate(report.cards):
        yield f"GPU {number}   {'; '.join(_abilities(card, report))}"


def _abilities(card: Card, report: Report) -> Iterator[str]:
    supported = card not in report.unsupported()
    yield f"{'kernels' if supported else 'NO kernels'} for {card.architecture} in this PyTorch"
    yield "bfloat16" if card.capability >= AMPERE else "no bfloat16"
    bits = report.installed("bitsandbytes")
    yield "8-bit optimizers and nf4" if bits else "no 8-bit optimizers and no nf4 (bitsandbytes is missing)"
    yield "CUDA graphs" if supported and report.torch and report.torch.cuda else "no CUDA graphs"
    yield (
        "this project's kernels"
        if report.has_triton and card.capability >= TURING
        else "none of this project's kernels"
    )


def trial_lines(report: Report) -> Iterator[str]:
    """What `--test` found out."""
    trial = report.trial
    if trial is None:
        return
    if trial.problem:
        yield f"test    a step of the tiny model on {trial.device} failed: {trial.problem}"
        return
    kernels = "" if trial.kernels is None else f", {trial.kernels} kernels, {trial.own} of them this project's"
    graph = "as a CUDA graph" if trial.captured else "without a CUDA graph"
    yield f"test    a step of the tiny model on {trial.device}: {trial.seconds * 1000:.0f} ms {graph}{kernels}"
    yield f"        losses differ from those of PyTorch's own operations by {trial.apart:.1e} at most"


def config_lines(report: Report) -> Iterator[str]:
    """The lines of a config for SDXL that fit the largest card, at 1024 px or what is possible."""
    if not report.cards:
        yield "config  no GPU: the demo can be trained on the CPU (--device cpu), SDXL cannot in practice"
        return
    card = max(report.cards, key=lambda c: c.total)
    demand, size = fitting(card, report)
    if demand is None:
        yield f"config  {card.name}: SDXL does not fit, Stable Diffusion 1 may (train_lora-scale.py, config.yaml)"
        return
    yield f"config  for SDXL (c3lier noxattn rank 96, one pair) on {card.name}: {gib(demand.peak)} GiB at {size} px"
    for key, value in demand.changes(_usual(size)).items():
        section, name = key.split(".")
        yield f"          {section}: {{{name}: {value}}}"
    if size != 1024:
        yield f"          --resolution {size}"
    if demand == _usual(size):
        yield "          nothing to change"


def _usual(size: int) -> Demand:
    return Demand("sdxl", SDXL, SDXL_PARAMETERS, pixels=2 * size**2, picture=size**2)


def fitting(card: Card, report: Report) -> tuple[Demand | None, int]:
    """What a run of SDXL is to set on a card, and its resolution in px. None if nothing fits.

    Counts on all of the card's memory, because what other programs use now, they may not use later.
    """
    fused = card.capability >= AMPERE and report.has_triton
    precision = "bfloat16" if card.capability >= AMPERE else NO_BFLOAT16
    room = int(card.total - SCREEN)
    for size in (1024, 768, 512):
        wanted = replace(_usual(size), precision=precision, fused=fused)
        found = wanted if wanted.fits(room) else wanted.fitting(room)
        if found is not None:
            return (replace(found, fused=True) if found.changes(wanted) == {} else found), size
    return None, 0


def problems(report: Report) -> list[str]:
    """What is wrong, each with what to do about it."""
    torch = report.torch
    return [
        *_driver_problems(report),
        *([] if torch is None else _torch_problems(report)),
        *([] if torch is None else _card_problems(report)),
        *_other_problems(report),
    ]


def _driver_problems(report: Report) -> Iterator[str]:
    if report.system == "macOS":
        yield "a Mac has no NVIDIA GPU: add `--device mps` to use Apple's, which has not been tried with SDXL."
    elif report.driver is None:
        yield f"no NVIDIA driver answers: if there is an NVIDIA card, {DRIVER[report.system]}."
    elif not report.cards:
        yield f"the driver lists no GPU: run `nvidia-smi`; if it lists none either, {DRIVER[report.system]}."
    if report.lacks_newer_driver():
        yield (
            f"the driver {report.driver} is too old for CUDA {report.torch.cuda}, which needs {report.needs_driver}: "
            f"{DRIVER[report.system]}; or take a PyTorch for this driver: "
            f"`{INSTALL.format('auto', report.torch.release)}`, and {_no_sync()}."
        )


def _torch_problems(report: Report) -> Iterator[str]:
    torch = report.torch
    if not torch.version:
        yield f"PyTorch could not be imported ({torch.problem}): run `uv sync --reinstall-package torch`."
    elif report.cards and torch.cuda is None:
        yield f"this PyTorch cannot use a GPU: once, `{INSTALL.format('auto', torch.release)}`; from then on {_no_sync()}."
    elif report.cards and torch.cards == 0 and report.hidden:
        yield f"CUDA_VISIBLE_DEVICES is {report.hidden!r}, which hides the GPU: unset it, or set it to 0."
    elif report.cards and torch.cards == 0 and not report.lacks_newer_driver():
        said = f" ({torch.problem})" if torch.problem else ""
        yield f"PyTorch finds no GPU although the driver lists one{said}: restart the machine, or {DRIVER[report.system]}."


def _card_problems(report: Report) -> Iterator[str]:
    if lacking := report.unsupported():
        old = [c for c in lacking if c.capability < CUDA_13_FROM]
        backend = "cu126" if old else "auto"
        yield (
            f"PyTorch {report.torch.version} has no kernels for {names_of(lacking)}: once, "
            f"`{INSTALL.format(backend, report.torch.release)}`; from then on {_no_sync()}."
        )
    for number, card in enumerate(report.cards):
        if card.capability < AMPERE:
            yield f"{card.name} has no bfloat16: set `train: {{precision: {NO_BFLOAT16}}}`, or steps take many times as long."
        if card.free < 0.8 * card.total:
            yield (
                f"other programs use {gib(card.total - card.free)} of {gib(card.total)} GiB of GPU {number}: "
                "`nvidia-smi` lists them; close them."
            )


def _other_problems(report: Report) -> Iterator[str]:
    nvidia = bool(report.cards)
    if nvidia and not report.installed("bitsandbytes"):
        yield "bitsandbytes is missing, and with it 8-bit optimizers and nf4: `uv pip install bitsandbytes`."
    triton = "triton-windows" if report.system == "Windows" else "triton"
    if nvidia and report.system != "macOS" and not report.installed(triton):
        yield f"Triton is missing, and with it this project's kernels: `uv pip install {triton}`."
    for disk in report.disks:
        if disk.free < disk.needed:
            move = "set HF_HOME to a folder on another disk" if "hub" in disk.what else "choose another --save_path"
            yield f"{disk.free / GIB:.0f} GiB are free for {disk.what}, {disk.needed / GIB:.0f} are usual: make room, or {move}."
    if report.system in ("Windows", "WSL") and nvidia:
        yield (
            "where a card's memory is used up, the driver moves it to main memory, and all becomes slow without an error: in NVIDIA's "
            'control panel, set "CUDA – Sysmem Fallback Policy" to "Prefer No Sysmem Fallback".'
        )
    if report.trial and report.trial.problem:
        yield f"the step of the tiny model failed: {report.trial.problem}: set `other: {{fast_path: off}}`, and report it."


def _no_sync() -> str:
    return "start with `uv run --no-sync …`"


def problem_lines(report: Report) -> Iterator[str]:
    found = problems(report)
    yield "" if found else "all is well"
    yield from (f"to do   {sentence}" for sentence in found)
    if report.trial is None:
        yield f"more    `{how_to_run('check.py')} --test` also trains a few steps of the tiny model"


def page(report: Report) -> list[str]:
    """All lines of a complete report."""
    parts = (first_lines, torch_lines, trial_lines, config_lines, problem_lines)
    return [line for part in parts for line in part(report)]
