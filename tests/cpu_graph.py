"""What a CUDA graph is to its user, on a CPU: the operations of one run, run again on the same tensors.

As on a GPU, nothing of Python runs again: a number that the step read or computed in Python keeps its first value, and an
operation that a GPU refuses while it captures is refused here. Not seen here are memory used twice, and streams.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# What hands numbers to Python, makes shapes of them, or brings numbers from Python: on a GPU each waits for a copy.
WAITS = (
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2,
    aten.lift_fresh,
)  # fmt: skip


def _chooses(func, args: tuple) -> bool:
    """Indexing by a mask: how much comes out depends on numbers."""
    indexes = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_)
    return indexes and any(i is not None and i.dtype == torch.bool for i in args[1])


class Recording(TorchDispatchMode):
    """Everything that is computed inside the `with` block, which `replay` computes again."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in WAITS or _chooses(func, args):
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
    """In the place of `torch.cuda.CUDAGraph`."""

    def pool(self) -> "Graph":
        return self

    def replay(self) -> None:
        self.recording.replay()


@contextmanager
def capture(graph: Graph, pool: Graph | None = None, stream: "Stream | None" = None):
    """In the place of `torch.cuda.graph`."""
    with Recording() as graph.recording:
        yield


class Stream:
    """In the place of `torch.cuda.Stream`: here everything comes one after the other."""

    def wait_stream(self, other: "Stream") -> None:
        pass


def replace_cuda(monkeypatch) -> None:
    """What `StepGraph` asks of `torch.cuda`, answered by the CPU, until the test ends."""
    stream = Stream()
    for name, substitute in {
        "CUDAGraph": Graph, "graph": capture, "Stream": Stream, "current_stream": lambda: stream,
        "is_current_stream_capturing": lambda: _get_current_dispatch_mode() is not None,
        "stream": lambda _: nullcontext(), "set_stream": lambda _: None, "synchronize": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, substitute)
