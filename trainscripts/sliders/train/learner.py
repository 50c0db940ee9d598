"""Updates the weights: clipping, optimizer, learning-rate schedule, and a guard against gradients that are not finite."""

import torch
from torch import Tensor

from sliders.adaptors.flat_weights import FlatWeights
from sliders.config.schema import Train
from sliders.system.processes import Processes
from sliders.train.optimizers import UpdateGuard, build_lr_scheduler, build_optimizer, replay_schedule


class Learner:
    """Call `learner.update(loss)` after each gradient. `tensors()` contains everything the next update depends on."""

    def __init__(self, settings: Train, weights: FlatWeights, device: str, processes: Processes):
        self._settings, self._weights, self._processes = settings, weights, processes
        self.optimizer = build_optimizer(settings, [weights.master])
        self.lr_scheduler = build_lr_scheduler(settings, self.optimizer)
        self._base_lrs = list(self.lr_scheduler.base_lrs)
        self._guard = UpdateGuard(self.optimizer, device, settings.skip_nonfinite)

    @property
    def lr(self) -> float:
        return self.lr_scheduler.get_last_lr()[0]

    def update(self, loss: Tensor) -> Tensor:
        """Averages loss and gradient over the processes, clips and learns. If they are not finite, only the schedule advances.

        Returns [loss, gradient norm before clipping], float32, on the device. All processes get the same, bit for bit.
        This stays outside of CUDA graphs, which each process captures, or gives up, when it likes.
        """
        shared, gradient = self._weights.shared, self._weights.master.grad
        shared[-1] = loss
        self._processes.average(shared)
        norm = torch.linalg.vector_norm(gradient)
        values = torch.stack([shared[-1], norm])
        if self._settings.max_grad_norm:
            gradient.mul_((self._settings.max_grad_norm / (norm + 1e-6)).clamp(max=1))
        if self._guard.admits(values):
            self.optimizer.step()
            self._weights.refresh()
        self.lr_scheduler.step()
        return values

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
