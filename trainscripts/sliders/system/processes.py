"""Several processes that train one slider, each on its part of every step's rows (data parallelism).

`accelerate launch` and torchrun start them. The first writes the files and draws the pictures; all keep the same weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sliders.system.errors import InputError
from sliders.system.launch import OWN, launch

PATIENCE = timedelta(days=1)  # while the first draws pictures; a process that has ended is noticed at once
T, R = TypeVar("T"), TypeVar("R")


class LostProcessError(InputError):
    """Another process has ended, so that what all must do together cannot be done."""


class Processes:
    """A process that trains alone. `Together` has the same methods for several, which all must call in the same order."""

    rank, count = 0, 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def if_first(self, make: Callable[[], AbstractContextManager]) -> AbstractContextManager:
        """The context manager that `make` makes in the first process, and one that does nothing in the others."""
        return make() if self.first else nullcontext()

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of what all do. Their parts are equally long if there are as many items for each."""
        return items[self.rank :: self.count]

    def share_out(self, items: Sequence[T], work: Callable[[T], R]) -> list[R]:
        """`work` of every item: each process does its part, then all get all results."""
        parts = self.gather([work(item) for item in self.part(items)])
        return [parts[i % self.count][i // self.count] for i in range(len(items))]

    def check_equal(self, value: object, what: str) -> None:
        """Raises InputError in all processes unless all pass the same value. Nobody returns before all have called it."""
        if any(other != value for other in self.gather(value)):
            raise InputError(
                f"{what} not the same in all {self.count} processes: use GPUs of one kind, and continue with --resume from the "
                "newest checkpoint."
            )

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        return [value]

    def largest(self, number: int) -> int:
        """The largest number that any process passes."""
        return number

    def average(self, tensor: Tensor) -> None:
        """Replaces the tensor by the mean of those that all processes pass, of one shape."""


class Together(Processes):
    """One of several processes. Messages go through main memory (gloo), tensors through NCCL if each has a GPU of its own.

    Every method raises LostProcessError if another process has ended.
    """

    def __init__(self, rank: int, count: int):
        self.rank, self.count = rank, count
        self._nccl: Any = None
        self._averaged = False

    def gather(self, value: T) -> list[T]:
        found: list = [None] * self.count
        with _unless_lost():
            dist.all_gather_object(found, value)
        return found

    def largest(self, number: int) -> int:
        found = torch.tensor(number)
        with _unless_lost():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def average(self, tensor: Tensor) -> None:
        if not self._averaged:
            self._averaged = True
            self._nccl = self._nccl_group(tensor)
        with _unless_lost():
            if self._nccl is not None:
                dist.all_reduce(tensor, dist.ReduceOp.AVG, group=self._nccl)
                return
            mean = tensor.cpu()
            dist.all_reduce(mean)
            tensor.copy_(mean.div_(self.count))

    def _nccl_group(self, tensor: Tensor) -> Any:
        """None on CPUs, if processes share a GPU, which NCCL refuses, and without NCCL."""
        own = str(torch.cuda.get_device_properties(tensor.device).uuid) if tensor.is_cuda else None
        gpus = self.gather(own)
        shared = len(set(gpus)) < self.count
        if None not in gpus and not shared and dist.is_nccl_available():
            return dist.new_group(backend="nccl")
        if tensor.is_cuda and shared:
            print("note: processes share a GPU, so gradients go through main memory; one for each GPU is faster.")
        elif tensor.is_cuda:  # not verified on Windows
            print(
                "note: this PyTorch has no NCCL, as on Windows, so gradients go through main memory, which is slower."
            )
        return None

    def speaks(self, error: Exception) -> bool:
        """Whether this process is the first to meet an error, and so reports it."""
        try:
            return dist.distributed_c10d._get_default_store().add("errors", 1) == 1
        except RuntimeError:  # the first process kept the count and has ended; what all meet, it has reported
            return isinstance(error, LostProcessError)


@contextmanager
def _unless_lost() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostProcessError(
            "another process of this run has ended; every file that was written is complete: continue with --resume."
        ) from error


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this launch, or one alone. An error in any of them ends all, and one of them reports it."""
    found = launch()
    if found.count == 1:
        yield Processes()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    processes = Together(found.rank, found.count)
    try:
        yield processes
    except Exception as error:
        if not processes.speaks(error):
            raise SystemExit(2) from error
        error.add_note(OWN)
        raise
    dist.destroy_process_group()  # only now: it would wait for one that has ended
