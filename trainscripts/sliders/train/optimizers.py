"""Names → optimizer and learning-rate schedule, each from its own library."""

import ast
import importlib
import warnings
from collections.abc import Iterable

import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedules

from sliders.config.optimizers import OPTIMIZERS
from sliders.config.schema import Train
from sliders.system.errors import InputError
from sliders.system.installation import how_to_install

LR_FLOOR = 0.01  # a decaying schedule ends at this share of lr


def parse_optimizer_args(text: str) -> dict[str, object]:
    """`"weight_decay=0.1 betas=(0.9,0.99)"` → dict. Values are Python literals; nothing is ever run."""
    found = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise InputError(
                f"train.optimizer_args: {word!r} is no key=value with a number, True, False or a tuple without spaces: "
                "write for example weight_decay=0.01 betas=(0.9,0.99)."
            ) from error
        if not key.isidentifier() or not equals:
            raise InputError(f"train.optimizer_args: {word!r} is no key=value: write for example weight_decay=0.01.")
    return found


def import_optimizer(name: str) -> type[Optimizer]:
    """Class behind a `train.optimizer` name; InputError if its library is not installed."""
    entry = OPTIMIZERS[name]
    try:
        return getattr(importlib.import_module(entry.module), entry.cls)
    except ImportError as error:
        raise InputError(
            f"train.optimizer: {name} needs a package that is not installed ({error}): {how_to_install(entry.module, entry.extra)}."
        ) from error


def build_optimizer(settings: Train, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    """The optimizer of `train.optimizer` over float32 parameters, `train.optimizer_args` passed on."""
    cls, arguments = import_optimizer(settings.optimizer), parse_optimizer_args(settings.optimizer_args)
    if OPTIMIZERS[settings.optimizer].fused and "foreach" not in arguments:
        arguments.setdefault("fused", True)
    try:
        return cls(list(parameters), lr=arguments.pop("lr", settings.lr), **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(
            f"train.optimizer_args: {settings.optimizer} does not take them ({error}): correct or remove them."
        ) from error


class UpdateGuard:
    """Keeps gradients that are not finite from the weights: without waiting for the device, where the optimizer can.

    PyTorch's fused Adam takes a flag on the device, made for loss scaling, at which its kernel writes nothing. After more
    than `tolerated` bad steps in a row nothing is learnt until somebody has looked.
    """

    def __init__(self, optimizer: Optimizer, device: str, tolerated: int = 0):
        self._tolerated = tolerated
        self._in_row = torch.zeros((), device=device)
        self._over = torch.zeros((), device=device)  # 1 from the first step beyond what is tolerated
        self._flag = None
        if optimizer.defaults.get("fused"):
            self._flag = optimizer.found_inf = torch.zeros((), device=device)

    def admits(self, values: torch.Tensor) -> bool:
        """values: loss and gradient norm on the device. True: call the optimizer, which leaves out a bad step itself."""
        bad = values.isfinite().all().logical_not()
        self._in_row.add_(1).mul_(bad)
        self._over.logical_or_(self._in_row > self._tolerated)
        held = self._over.logical_or(bad)
        if self._flag is None:
            return not held.item()
        self._flag.copy_(held)
        return True


def build_lr_scheduler(settings: Train, optimizer: Optimizer) -> schedules.LRScheduler:
    """The schedule of `train.lr_scheduler` over `train.iterations` steps of the optimizer.

    constant; cosine and linear fall to a hundredth of lr; cosine_with_restarts starts anew after 1/10, 3/10 and 7/10
    of the run; step takes 0.1 % off after each hundredth of it.
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
    """A new schedule as it stands after `steps`, the optimizer's rates with it: for settings other than it began with."""
    for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
        group["lr"] = group["initial_lr"] = lr
    schedule = build_lr_scheduler(settings, optimizer)
    with warnings.catch_warnings(action="ignore"):  # PyTorch misses the optimizer's steps between
        for _ in range(steps):
            schedule.step()
    return schedule
