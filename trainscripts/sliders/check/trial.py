"""A few steps of the tiny model, with this project's kernels and with PyTorch's own operations."""

import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from sliders.check.report import Trial
from sliders.compute.device import torch_device
from sliders.config.prompts import PromptSet
from sliders.config.schema import Data, Network, Other, PretrainedModel, Save, Settings, Train
from sliders.fast.kernel_support import own_kernels
from sliders.system.errors import first_line
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer

STEPS = 4  # the graph is captured in the second
SIZE = 64  # px
SCALES = (-1.0, 1.0)


def tried(device: str, precision: str) -> Trial:
    """device: as in `--device`. precision: as in the config. Writes into a temporary folder only."""
    name = torch_device(device)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            return _tried(_settings(Path(folder), device, precision), name)
    except Exception as error:  # whatever a kernel, a driver or a library raises is what the user wants to know
        return Trial(name, None, None, False, 0.0, 0.0, first_line(error))


def _tried(settings: Settings, name: str) -> Trial:
    plain = Trainer(make_plan(settings.model_copy(update={"other": Other(fast_path="off", cuda_graph="off")})))
    wanted = [plain.step(number).loss for number in range(STEPS)]
    trainer = Trainer(make_plan(settings))
    losses = [trainer.step(number).loss for number in range(STEPS)]
    began = time.perf_counter()
    _ = trainer.step(STEPS).loss  # waits for the device
    seconds = time.perf_counter() - began
    kernels = _kernels(trainer) if name.startswith("cuda") else None
    own = None if kernels is None else sum(kernel in own_kernels() for kernel in kernels)
    apart = max(abs(a / b - 1) for a, b in zip(losses, wanted, strict=True))
    return Trial(name, None if kernels is None else len(kernels), own, trainer.step.captured > 0, seconds, apart)


def _kernels(trainer: Trainer) -> list[str]:
    """Names of the kernels of a step, in no order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        trainer.step(STEPS + 1)
        torch.cuda.synchronize()
    return [row.key for row in profiler.key_averages() for _ in range(row.count)]


def _settings(folder: Path, device: str, precision: str) -> Settings:
    names = tuple(f"scale{i}" for i in range(len(SCALES)))
    for i, name in enumerate(names):
        (folder / name).mkdir()
        Image.linear_gradient("L").resize((SIZE, SIZE)).rotate(90 * i).convert("RGB").save(
            folder / name / "picture.png"
        )
    return Settings(
        config_file=folder, pretrained_model=PretrainedModel(name_or_path="tiny"),
        network=Network(type="c3lier", rank=8, alpha=4.0, training_method="noxattn"), train=Train(precision=precision),
        save=Save(name="check", path=folder / "models"), prompts=(PromptSet(target="", resolution=SIZE),),
        data=Data(folder_main=folder, folders=names, scales=SCALES), device=device,
    )  # fmt: skip
