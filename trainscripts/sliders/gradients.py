"""A batch → loss and gradient: as it comes, or on CUDA as a graph captured once for each shape of batch."""

import dataclasses
import gc
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from sliders.batch import Batch
from sliders.flat import FlatWeights

WARM_UPS = 3  # libraries choose their algorithms and compiled blocks compile before anything is captured


class Gradients:
    """`gradients(batch)` leaves the gradient of the step's loss in `weights.master.grad`, clipped, and returns
    [loss, gradient norm before clipping], float32 on the device."""

    def __init__(self, forward: Callable[[Batch], Tensor], weights: FlatWeights, max_grad_norm: float):
        self.weights = weights
        self._forward, self._max_norm = forward, max_grad_norm

    def __call__(self, batch: Batch) -> Tensor:
        loss = self._forward(batch)
        loss.backward()
        norm = self.weights.gather_gradients()
        if self._max_norm:
            self.weights.master.grad.mul_((self._max_norm / (norm + 1e-6)).clamp(max=1))
        return torch.stack([loss.detach(), norm])


class CapturedGradients:
    """The same as one CUDA graph: some thousand kernels started at once, where starting them one by one takes longer
    than running them. Several shapes of batches keep several graphs in one pool of memory."""

    def __init__(self, gradients: Gradients):
        self._gradients = gradients
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[tuple, tuple[Batch, torch.cuda.CUDAGraph, Tensor]] = {}
        self._given_up = False

    def __call__(self, batch: Batch) -> Tensor:
        if self._given_up:
            return self._gradients(batch)
        key = tuple(tuple(getattr(batch, f.name).shape) for f in dataclasses.fields(batch))
        if key not in self._captured:
            try:
                self._captured[key] = self._capture(batch)
            except RuntimeError as error:
                return self._give_up(batch, error)
        static, graph, result = self._captured[key]
        for field in dataclasses.fields(batch):
            getattr(static, field.name).copy_(getattr(batch, field.name), non_blocking=True)
        graph.replay()
        return result.clone()

    def _capture(self, batch: Batch) -> tuple[Batch, torch.cuda.CUDAGraph, Tensor]:
        static = Batch(**{f.name: getattr(batch, f.name).clone() for f in dataclasses.fields(batch)})
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._gradients(static)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()  # what warming up used is free again for the graph
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = self._gradients(static)
        return static, graph, result

    def _give_up(self, batch: Batch, error: RuntimeError) -> Tensor:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        tqdm.write(
            f"note: this step cannot be captured as a CUDA graph ({reason}); training goes on without, more slowly."
        )
        self._given_up = True
        self._captured.clear()
        self._gradients.weights.drop_gradients()
        return self._gradients(batch)
