"""Everything that the next update depends on: weights, optimizer and learning-rate schedule."""

import warnings

import torch

from sliders.adaptors.flat_weights import FlatWeights
from sliders.config.schema import Train
from sliders.train.optimizers import UpdateGuard, build_lr_scheduler, build_optimizer, replay_schedule


class Learner:
    """Optimizer and schedule of the weights, and the guard that keeps bad gradients from them. `tensors()` is their state."""

    def __init__(self, settings: Train, weights: FlatWeights, device: str):
        self._settings, self._weights = settings, weights
        self.optimizer = build_optimizer(settings, [weights.master])
        self.lr_scheduler = build_lr_scheduler(settings, self.optimizer)
        self._base_lrs = list(self.lr_scheduler.base_lrs)
        self._guard = UpdateGuard(device, settings.skip_nonfinite)

    @property
    def lr(self) -> float:
        return self.lr_scheduler.get_last_lr()[0]

    def update(self, values: torch.Tensor) -> None:
        """Takes a step along `master.grad`, unless loss or gradient norm, `values`, are not finite. The schedule goes on."""
        self._guard.step(self.optimizer, self._weights.master.grad, values)
        self._weights.refresh()
        with warnings.catch_warnings(action="ignore"):  # PyTorch expects the optimizer to have stepped
            self.lr_scheduler.step()

    def tensors(self) -> dict:
        return {
            "master": self._weights.master.detach(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
        }

    def load(self, tensors: dict) -> None:
        """Restores what `tensors()` returned, including the schedule, whose settings must be the same."""
        with torch.no_grad():
            self._weights.master.copy_(tensors["master"])
        self._weights.refresh()
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.lr_scheduler.load_state_dict(tensors["lr_scheduler"])

    def replay_schedule(self, steps: int) -> None:
        """Sets the learning rate as if `steps` steps had been taken with the present settings."""
        self.lr_scheduler = replay_schedule(self._settings, self.optimizer, self._base_lrs, steps)
