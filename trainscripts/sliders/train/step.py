"""One training step, from its draw to the new weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sliders.adaptors.flat_weights import FlatWeights
from sliders.config.schema import Train
from sliders.data.contract import Batch
from sliders.data.draws import StepDraw
from sliders.fast.graphs import CapturedCalls, free_memory
from sliders.system.processes import Processes
from sliders.train.denoiser import AdaptedDenoiser
from sliders.train.learner import Learner
from sliders.train.losses import Loss


@dataclass(frozen=True)
class StepResult:
    """The outcome of one step. Reading `loss` or `grad_norm` waits for the device."""

    step: int
    draw: StepDraw
    lr: float
    values: Tensor  # [loss, gradient norm before clipping], float32, on the device

    @property
    def loss(self) -> float:
        return self.values[0].item()

    @property
    def grad_norm(self) -> float:
        return self.values[1].item()


class Step:
    """`step(number)` makes one optimizer step.

    draw: number → what the step trains on. make_batch: draw → batch, on the device. timestep_weights: of the rows'
    losses, [timesteps] float32, or None if all weigh alike. autocast: other.torch_amp.
    """

    def __init__(
        self, settings: Train, draw: Callable[[int], StepDraw], make_batch: Callable[[StepDraw], Batch], loss: Loss,
        denoiser: AdaptedDenoiser, weights: FlatWeights, learner: Learner, processes: Processes,
        timestep_weights: Tensor | None = None, autocast: bool = False,
    ):  # fmt: skip
        self.settings, self.draw, self.make_batch, self.loss, self.denoiser = settings, draw, make_batch, loss, denoiser
        self.weights, self.learner, self.processes = weights, learner, processes
        self.timestep_weights, self._autocast = timestep_weights, autocast
        self.gradient: Callable[[Batch], Tensor] = self.backward

    def __call__(self, number: int) -> StepResult:
        """A gradient that is not finite changes nothing; `Watch` then reports it."""
        draw, lr = self.draw(number), self.learner.lr
        batch = self.make_batch(replace(draw, rows=self.processes.part(draw.rows)))
        return StepResult(number, draw, lr, self.update(self.gradient(batch)))

    def loss_of(self, batch: Batch) -> Tensor:
        """The loss, float32, 0-dim: twice the mean of the rows, so that one pair's is the sum of its two."""
        with torch.autocast(batch.timesteps.device.type, torch.bfloat16, enabled=self._autocast):
            rows = self.loss(self.denoiser, batch)
        if gamma := self.settings.min_snr_gamma:
            rows = rows * self.denoiser.objective.min_snr_weight(batch.timesteps, gamma)
        if self.timestep_weights is not None:
            rows = rows * self.timestep_weights[batch.timesteps]
        return 2 * rows.mean()

    def backward(self, batch: Batch) -> Tensor:
        """Writes the gradient of the loss to `weights.master.grad`. Returns the loss. This is what a graph captures."""
        loss = self.loss_of(batch)
        loss.backward()
        self.weights.gather_gradients()
        return loss.detach()

    def update(self, loss: Tensor) -> Tensor:
        """Averages loss and gradient over the processes, clips and learns. If they are not finite, only the schedule advances.

        Returns [loss, gradient norm before clipping], float32, on the device. All processes get the same, bit for bit.
        This stays outside of CUDA graphs, which each process captures, or gives up, when it likes.
        """
        shared, gradient = self.weights.shared, self.weights.master.grad
        shared[-1] = loss
        self.processes.average(shared)
        norm = torch.linalg.vector_norm(gradient)
        values = torch.stack([shared[-1], norm])
        if self.settings.max_grad_norm:
            gradient.mul_((self.settings.max_grad_norm / (norm + 1e-6)).clamp(max=1))
        self.learner.update(values)
        return values

    def capture(self, device: torch.device) -> None:
        """From now on, replays `backward` as CUDA graphs where it can."""
        self.gradient = CapturedCalls(self.backward, device, "training", self.weights.drop_gradients)

    @property
    def captured(self) -> int:
        """Number of graphs."""
        return self.gradient.captured if isinstance(self.gradient, CapturedCalls) else 0

    def free_memory(self) -> None:
        """Frees GPU memory that is kept between steps only for speed."""
        if isinstance(self.gradient, CapturedCalls):
            self.gradient.forget()
        else:
            free_memory()
