"""Calls as CUDA graphs: thousands of kernels are launched at once. One by one, launching them takes longer than running them."""

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sliders.system.errors import first_line

WARM_UPS = 3  # calls before a capture, in which libraries choose their algorithms


class CannotCaptureError(Exception):
    """A call cannot be captured as a CUDA graph. The message is the reason."""


class CapturedCall:
    """`call()` as a CUDA graph. `captured(tensors)` copies `tensors` into `static`, which `call` reads, and replays it."""

    def __init__(
        self, call: Callable[[], Tensor], static: Sequence[Tensor], stream: torch.cuda.Stream,
        beside: "CapturedCall | None", warm_ups: int = WARM_UPS,
    ):  # fmt: skip
        """Captures `call` on `stream`: the same for all graphs, because PyTorch keeps workspaces for each stream.

        beside: another graph, whose memory pool is shared. The call is then not warmed up again: libraries have chosen
        their algorithms, and an uncaptured call might not fit beside that pool. warm_ups: 0 if it has run on `stream`.

        Raises CannotCaptureError, and whatever the call itself raises while warming up.
        """
        self._static = static
        if beside is None and warm_ups:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(warm_ups):
                    call()
            torch.cuda.current_stream().wait_stream(stream)
        gc.collect()  # `torch.cuda.graph` then frees cached memory, which the graph's own pool cannot use
        self._graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self._graph, pool=beside and beside._graph.pool(), stream=stream):
                self._result = call()
            self._check()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a capture that fails leaves torch on its capture stream
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise CannotCaptureError(first_line(error)) from error

    def _check(self) -> None:
        """Rejects an empty graph, which would return the same result forever."""
        self._result.fill_(-1)  # which no result is as a whole
        self._graph.replay()
        if (self._result == -1).all():
            raise CannotCaptureError("the captured graph is empty")

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        for static, tensor in zip(self._static, tensors, strict=True):
            static.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self.result()

    def result(self) -> Tensor:
        """A copy of what the last replay computed: after the capture, the result for the first `static`."""
        return self._result.clone()
