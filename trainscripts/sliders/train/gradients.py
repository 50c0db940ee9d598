"""A batch → loss and gradient: as it comes, or on CUDA as a graph captured once for each shape of batch."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from sliders.adaptors.flat_weights import FlatWeights
from sliders.data.batch import Batch
from sliders.system.errors import first_line

WARM_UPS = 3  # libraries choose their algorithms for the stream before anything is captured
MAX_GRAPHS = 32  # each keeps the arguments of its thousands of kernels on the GPU, and capturing must be earned back


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

    def forget(self) -> None:
        """Free the GPU's memory for something else: what is kept from step to step only to be fast."""
        gc.collect()
        torch.cuda.empty_cache()


class CannotCaptureError(Exception):
    """Says why a step cannot be a graph."""


class StepGraph:
    """The same for batches of one shape as a CUDA graph: some thousand kernels started at once, where starting them one
    by one takes longer than running them.

    stream: to capture on, one for all graphs, for PyTorch keeps workspaces of each. beside: another graph, whose pool of
    memory serves both; libraries have then chosen their algorithms, and a step beside that pool might find no room.
    """

    def __init__(self, gradients: Gradients, batch: Batch, stream: torch.cuda.Stream, beside: "StepGraph | None"):
        """Raises CannotCaptureError; what is wrong with the step itself comes out of warming up as it is."""
        self._static = batch.map(torch.clone)
        if beside is None:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    gradients(self._static)
            torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()  # what the steps before used is free again for the graph
        self._graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self._graph, pool=beside and beside._graph.pool(), stream=stream):
                self._result = gradients(self._static)
            self._check()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # torch stays on its own where a capture cannot be ended
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise CannotCaptureError(first_line(error)) from error

    def _check(self) -> None:
        """An empty graph would train on the last batch's gradient for ever."""
        self._result.fill_(-1)  # as neither a loss nor a norm can be
        self._graph.replay()
        if (self._result == -1).any():
            raise CannotCaptureError("the graph came out empty")

    def __call__(self, batch: Batch) -> Tensor:
        for static, tensor in zip(self._static.tensors(), batch.tensors(), strict=True):
            static.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._result.clone()


class CapturedGradients:
    """The same through graphs, one for each shape of batch. A shape is captured when it comes the second time: with many
    sizes of images, most of them do not come back often enough to earn it."""

    def __init__(self, gradients: Gradients):
        self._gradients = gradients
        self._graphs: dict[tuple, StepGraph] = {}
        self._seen: set[tuple] = set()
        self._made_room_for: set[tuple] = set()
        self._given_up = False
        self._stream = torch.cuda.Stream()

    @property
    def captured(self) -> int:
        return len(self._graphs)

    def __call__(self, batch: Batch) -> Tensor:
        shape = tuple(tuple(tensor.shape) for tensor in batch.tensors())
        room = len(self._graphs) < MAX_GRAPHS and not self._given_up
        due = room and shape in self._seen and shape not in self._graphs
        self._seen.add(shape)
        try:
            if due:
                self._graphs[shape] = StepGraph(self._gradients, batch, self._stream, self._any_graph())
            return self._graphs.get(shape, self._gradients)(batch)
        except CannotCaptureError as error:
            self._give_up(str(error))
        except torch.OutOfMemoryError:
            if not (due or self._graphs):
                raise
            if shape in self._made_room_for or not self._graphs:
                self._give_up("the GPU has no memory left for it")
            self._made_room_for.add(shape)
        self._gradients.weights.drop_gradients()
        self.forget()  # only here, where the error no longer holds the tensors of the attempt
        return self._gradients(batch)

    def _any_graph(self) -> StepGraph | None:
        return next(iter(self._graphs.values()), None)

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        tqdm.write(
            f"note: this step cannot be captured as a CUDA graph ({reason}); training goes on without, more slowly."
        )

    def forget(self) -> None:
        """Of all graphs; a shape that comes again is captured anew."""
        self._graphs.clear()
        self._gradients.forget()
