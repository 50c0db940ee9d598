"""Computes loss and gradient of a batch: kernel by kernel, or on CUDA by replaying a graph captured once per batch shape."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from sliders.adaptors.flat_weights import FlatWeights
from sliders.compute.graphs import CannotCaptureError, CapturedCall
from sliders.data.batch import Batch

MAX_GRAPHS = 32  # each takes time to capture, and GPU memory for the arguments of thousands of kernels


class Gradients:
    """`gradients(batch)` writes the gradient of the loss to `weights.master.grad`. It returns the loss, 0-dim float32."""

    def __init__(self, forward: Callable[[Batch], Tensor], weights: FlatWeights):
        self.weights = weights
        self._forward = forward

    def __call__(self, batch: Batch) -> Tensor:
        loss = self._forward(batch)
        loss.backward()
        self.weights.gather_gradients()
        return loss.detach()

    def forget(self) -> None:
        """Frees the GPU memory that is kept between steps only for speed."""
        gc.collect()
        torch.cuda.empty_cache()


class StepGraph(CapturedCall):
    """`Gradients` for batches of one shape, as a CUDA graph."""

    def __init__(self, gradients: Gradients, batch: Batch, stream: torch.cuda.Stream, beside: "StepGraph | None"):
        static = batch.map(torch.clone)
        super().__init__(lambda: gradients(static), static.tensors(), stream, beside)

    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(batch.tensors())


class CapturedGradients:
    """`Gradients` through CUDA graphs, one per batch shape, captured when the shape occurs for the second time.

    With images of many sizes, most shapes do not occur often enough to make up for the time of a capture. A step that
    cannot be captured, or finds no memory beside the graphs, runs without one.
    """

    def __init__(self, gradients: Gradients):
        self._gradients = gradients
        self._graphs: dict[tuple, StepGraph] = {}
        self._seen: set[tuple] = set()
        self._made_room_for: set[tuple] = set()
        self._given_up = False
        self._stream = torch.cuda.Stream(priority=-1)  # before that of `GradientSink`

    @property
    def captured(self) -> int:
        """Number of graphs."""
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
            self._made_room_for.add(shape)  # by freeing all graphs below
        self._gradients.weights.drop_gradients()
        self.forget()  # outside the except block, because the exception keeps the attempt's tensors alive
        return self._gradients(batch)

    def _any_graph(self) -> StepGraph | None:  # not a local variable of the caller, which would keep the graph alive
        return next(iter(self._graphs.values()), None)

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        tqdm.write(
            f"note: this step cannot be captured as a CUDA graph ({reason}); training goes on without graphs, more slowly."
        )

    def forget(self) -> None:
        """Frees all graphs. A shape that occurs again is captured again."""
        self._graphs.clear()
        self._gradients.forget()
