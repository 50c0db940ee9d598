"""Builds the optimizers and learning-rate schedules that the config names."""

import ast
import importlib
import re
import warnings
from collections.abc import Iterable

import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedules

from sliders.config.optimizers import OPTIMIZERS
from sliders.config.schema import Train
from sliders.system.errors import InputError
from sliders.system.installation import how_to_install

ARGUMENT = re.compile(r"(?:\([^()]*\)|\[[^\[\]]*\]|[^\s,()\[\]]|[()\[\]])+")  # up to a space or comma outside brackets
LR_FLOOR = 0.01  # decaying schedules end at this fraction of lr


def parse_optimizer_args(text: str) -> dict[str, object]:
    """`"weight_decay=0.1 betas=(0.9, 0.99)"` → dict. Values are Python literals: no code is run. Raises InputError.

    Arguments are separated by spaces or commas.
    """
    found = {}
    for word in ARGUMENT.findall(re.sub(r"\s*=\s*", "=", text)):
        key, equals, value = word.partition("=")
        if not key.isidentifier() or not equals:
            raise InputError(f"train.optimizer_args: {word!r} is not key=value: write for example weight_decay=0.01.")
        if key in found:
            raise InputError(f"train.optimizer_args: {key} is given twice: remove one of them.")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise InputError(
                f"train.optimizer_args: {word!r} is not key=value with a number, True, False or a tuple: write for example "
                "weight_decay=0.01 betas=(0.9,0.99)."
            ) from error
    return found


def import_optimizer(name: str) -> type[Optimizer]:
    """Imports the class that `train.optimizer` names. Raises InputError if its library is not installed."""
    entry = OPTIMIZERS[name]
    try:
        return getattr(importlib.import_module(entry.module), entry.cls)
    except ImportError as error:
        raise InputError(
            f"train.optimizer: {name} needs a package that is not installed ({error}): {how_to_install(entry.module, entry.extra)}."
        ) from error


def build_optimizer(settings: Train, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    """The optimizer that `train.optimizer` names, with `train.optimizer_args`, for float32 parameters.

    Raises InputError if it does not accept the arguments, or if its library is not installed.
    """
    cls, arguments = import_optimizer(settings.optimizer), parse_optimizer_args(settings.optimizer_args)
    if OPTIMIZERS[settings.optimizer].fused and "foreach" not in arguments:
        arguments.setdefault("fused", True)  # PyTorch rejects it beside foreach
    try:
        return cls(list(parameters), lr=arguments.pop("lr", settings.lr), **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(
            f"train.optimizer_args: {settings.optimizer} does not accept them ({error}): correct or remove them."
        ) from error


class UpdateGuard:
    """Calls the optimizer, but for gradients that are not finite, if possible without waiting for the device.

    PyTorch's loss scaling does that, here with a scale of 1: fused optimizers find out on the device, and write nothing.
    After more than `tolerated` bad steps in a row, all that follow count as bad, and `Watch` ends the run.
    """

    def __init__(self, device: str, tolerated: int = 0):
        self._tolerated = tolerated
        self._in_row = torch.zeros((), device=device)
        self._over = torch.zeros((), device=device)  # 1 from the first bad step that is not tolerated
        self._scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=1.0)
        self._scaler.scale(torch.zeros((), device=device))  # makes its tensors

    def step(self, optimizer: Optimizer, gradient: torch.Tensor, values: torch.Tensor) -> None:
        """gradient: flat, what the optimizer reads; a bad one may be changed. values [2]: loss and gradient norm, on the device."""
        bad = values.isfinite().all().logical_not()
        self._in_row.add_(1).mul_(bad)
        self._over.logical_or_(self._in_row > self._tolerated)
        # One value is enough to be found; filling all of them would be one more pass over the memory.
        gradient[:1].masked_fill_(self._over.logical_or(bad), torch.inf)
        self._scaler.step(optimizer)
        self._scaler.update(new_scale=1.0)


def build_lr_scheduler(settings: Train, optimizer: Optimizer) -> schedules.LRScheduler:
    """The schedule that `train.lr_scheduler` names, over `train.iterations` steps.

    cosine and linear decay to 1 % of lr. cosine_with_restarts restarts after 1/10, 3/10 and 7/10 of the run. step
    reduces lr by 0.1 % after every hundredth of the run.
    """
    n, floor = settings.iterations, optimizer.param_groups[0]["lr"] * LR_FLOOR
    match settings.lr_scheduler:
        case "constant":
            return schedules.LambdaLR(optimizer, lambda step: 1.0)
        case "cosine":
            return schedules.CosineAnnealingLR(optimizer, T_max=n, eta_min=floor)
        case "cosine_with_restarts":
            return schedules.CosineAnnealingWarmRestarts(optimizer, T_0=max(1, n // 10), T_mult=2, eta_min=floor)
        case "step":
            return schedules.StepLR(optimizer, step_size=max(1, n // 100), gamma=0.999)
        case "linear":
            return schedules.LinearLR(optimizer, start_factor=1.0, end_factor=LR_FLOOR, total_iters=n)


def replay_schedule(settings: Train, optimizer: Optimizer, base_lrs: list[float], steps: int) -> schedules.LRScheduler:
    """A new schedule, after `steps` steps, for settings that have changed. Sets the optimizer's learning rates too."""
    for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
        group["lr"] = group["initial_lr"] = lr
    schedule = build_lr_scheduler(settings, optimizer)
    with warnings.catch_warnings(action="ignore"):  # PyTorch expects an optimizer step before each
        for _ in range(steps):
            schedule.step()
    return schedule
