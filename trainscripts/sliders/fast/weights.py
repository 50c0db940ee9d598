"""A network's weights in the dtype that layers compute in, and where fused layers put their gradients."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sliders.adaptors.flat_weights import FlatWeights
from sliders.adaptors.network import AdaptorNetwork

IN_FLIGHT = 2  # gradients whose inputs are kept until the second stream has read them


@dataclass(frozen=True, eq=False)
class Block:
    """Weights of one kind and shape [n, …] of several adaptors, below each other."""

    weight: Tensor  # [adaptors · n, …] in the dtype that layers compute in
    gradient: Tensor | None  # of the same shape, float32; None if nothing is trained
    indexes: tuple[int, ...]  # of the weights in the flat tensor


class FastWeights(FlatWeights):
    """`FlatWeights` with a copy in `dtype`, if that is not float32, which adaptors and fused layers read.

    Fused layers write their gradients where they belong, in float32, by `put`. Those that the others leave on the copy
    are gathered.
    """

    def __init__(self, network: AdaptorNetwork, dtype: torch.dtype, trains: bool = True):
        super().__init__(network, trains)
        self._flat = self.master.detach()
        if dtype != self.master.dtype:
            self._flat = self._flat.to(dtype)
            self.leaves = [view.requires_grad_(trains) for view in self.layout.views(self._flat)]
            leaf_of = {id(p): leaf for p, leaf in zip(self.layout.parameters, self.leaves, strict=True)}
            for adaptor in network.adaptors:
                adaptor.compute_with({name: leaf_of[id(p)] for name, p in adaptor.named_parameters()})
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._sink = GradientSink(self.master.device)

    def block(self, parameters: Sequence[nn.Parameter]) -> Block:
        """The block of parameters of one kind, of adaptors that follow each other in the network."""
        weight = self.layout.block(self._flat, parameters).requires_grad_(self.master.requires_grad)
        gradient = None if self.master.grad is None else self.layout.block(self.master.grad, parameters)
        return Block(weight, gradient, tuple(self.layout.indexes(parameters)))

    @torch.no_grad()
    def keep(self, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Keeps further copies up to date: [(copy, original)]."""
        for copy, original in copies:
            copy.copy_(original)
        self._copies += copies

    @torch.no_grad()
    def refresh(self) -> None:
        if self._flat.dtype != self.master.dtype:
            self._flat.copy_(self.master)
        if self._copies:
            torch._foreach_copy_(*map(list, zip(*self._copies, strict=True)))

    def put(self, block: Block, write: Callable[[Tensor], None], reads: tuple[Tensor, ...]) -> None:
        """Lets `write(out)` compute the gradient of a block. reads: the tensors that it reads.

        A second gradient of the same block in a pass is added to the first.
        """
        self._sink.put(block, write, reads)

    def gather_gradients(self) -> None:
        self._gather(self._sink.finish())

    def drop_gradients(self) -> None:
        self._sink.finish()
        super().drop_gradients()


class GradientSink:
    """Computes gradients on a CUDA stream of their own.

    Nothing else in a backward pass waits for these gradients, so on a GPU their kernels run beside the others, on what
    those leave free of the chip. `finish` makes the current stream wait for them.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._written: set[int] = set()
        self._in_flight: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()

    def put(self, block: Block, write: Callable[[Tensor], None], reads: tuple[Tensor, ...]) -> None:
        """As `FastWeights.put`."""
        again = block.indexes[0] in self._written
        self._written.update(block.indexes)
        if self._stream is None:
            _write(block.gradient, write, again)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            _write(block.gradient, write, again)
            done = self._stream.record_event()
        # The allocator would hand out the memory of `reads` while the second stream still needs it.
        self._in_flight.append((done, reads))
        if len(self._in_flight) > IN_FLIGHT:
            self._in_flight.popleft()[0].wait()

    def finish(self) -> frozenset[int]:
        """Returns the indexes of the weights with a gradient, and starts afresh."""
        if self._stream is not None and self._written:  # a graph may not wait for a stream that has no part in it
            torch.cuda.current_stream().wait_stream(self._stream)
        self._in_flight.clear()
        written, self._written = frozenset(self._written), set()
        return written


def _write(out: Tensor, write: Callable[[Tensor], None], again: bool) -> None:
    target = torch.empty_like(out) if again else out
    write(target)
    if again:
        out.add_(target)
