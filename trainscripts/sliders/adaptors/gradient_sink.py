"""Where a backward pass puts the gradients of adaptor weights: into views of one tensor, on a CUDA stream of their own."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sliders.compute.neighbours import stacked_view

IN_FLIGHT = 2  # gradients whose inputs are kept until the second stream has read them


class GradientSink:
    """Holds {weight: view for its gradient}. The backward functions of fused layers call `put`.

    Nothing else in a backward pass waits for these gradients, so on a GPU their kernels run beside the others, on what
    those leave free of the chip. `finish` makes the current stream wait for them.
    """

    def __init__(self, views: Sequence[tuple[Tensor, Tensor]]):
        """views: (weight, float32 view of the same shape) of all weights."""
        self._view_of = {id(weight): view for weight, view in views}
        self._written: set[int] = set()
        self._in_flight: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()
        device = views[0][0].device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def put(self, weights: Sequence[Tensor], write: Callable[[Tensor], None], reads: tuple[Tensor, ...]) -> None:
        """Lets `write(out)` compute the gradient of `weights`, which have one shape.

        out, float32: for several weights, their views below each other. reads: the tensors that `write` reads. A second
        gradient of the same weights in a pass is added to the first.
        """
        out = stacked_view([self._view_of[id(weight)] for weight in weights])
        if out is None:
            raise ValueError("weights whose gradients are computed together must be neighbours in memory")
        again = id(weights[0]) in self._written
        self._written.update(id(weight) for weight in weights)
        if self._stream is None:
            _write(out, write, again)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            _write(out, write, again)
            done = self._stream.record_event()
        # The allocator would hand out the memory of `reads` while the second stream still needs it.
        self._in_flight.append((done, reads))
        if len(self._in_flight) > IN_FLIGHT:
            self._in_flight.popleft()[0].wait()

    def finish(self) -> set[int]:
        """Returns the ids of the weights with a gradient, and starts afresh."""
        if self._stream is not None and self._written:  # a graph may not wait for a stream that has no part in it
            torch.cuda.current_stream().wait_stream(self._stream)
        self._in_flight.clear()
        written, self._written = self._written, set()
        return written


def _write(out: Tensor, write: Callable[[Tensor], None], again: bool) -> None:
    target = torch.empty_like(out) if again else out
    write(target)
    if again:
        out.add_(target)
