"""Stands in for CUDA graphs on the CPU: records the operations of a run and repeats them on the same tensors.

As on a GPU, a replay runs no Python code: numbers computed in Python keep their first value. Operations that a GPU does
not permit during capture raise here too. Streams and the reuse of memory are not simulated.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# operations whose result in Python, or whose shape, depends on tensor values, or that copy values from Python
WAITS = (
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2,
    aten.lift_fresh,
)  # fmt: skip


def _indexes_by_mask(func, args: tuple) -> bool:
    """Whether the shape of the result depends on a mask's values."""
    indexes = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_)
    return indexes and any(i is not None and i.dtype == torch.bool for i in args[1])


class Recording(TorchDispatchMode):
    """Records the operations in its `with` block; `replay` repeats them."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in WAITS or _indexes_by_mask(func, args):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class Graph:
    """Replaces `torch.cuda.CUDAGraph`."""

    def pool(self) -> "Graph":
        return self

    def replay(self) -> None:
        self.recording.replay()


@contextmanager
def capture(graph: Graph, pool: Graph | None = None, stream: "Stream | None" = None):
    """Replaces `torch.cuda.graph`."""
    with Recording() as graph.recording:
        yield


class Stream:
    """Replaces `torch.cuda.Stream`. On the CPU, operations are sequential."""

    def __init__(self, device: int = 0, priority: int = 0):
        pass

    def wait_stream(self, other: "Stream") -> None:
        pass

    def synchronize(self) -> None:
        pass


def replace_cuda(monkeypatch) -> None:
    """Replaces what captured calls use of `torch.cuda`, until the test ends."""
    stream = Stream()
    for name, substitute in {
        "CUDAGraph": Graph, "graph": capture, "Stream": Stream, "current_stream": lambda: stream,
        "is_current_stream_capturing": lambda: _get_current_dispatch_mode() is not None,
        "stream": lambda _: nullcontext(), "set_stream": lambda _: None, "current_device": lambda: 0,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, substitute)
