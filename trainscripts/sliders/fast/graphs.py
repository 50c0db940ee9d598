"""Calls as CUDA graphs: thousands of kernels are launched at once. One by one, launching them takes longer than running them."""

import gc
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from tqdm import tqdm

from sliders.system.errors import first_line

WARM_UPS = 3  # calls before a capture, in which libraries choose their algorithms
MAX_GRAPHS = 32  # each takes time to capture, and GPU memory for the arguments of thousands of kernels


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
            _free_generators()
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


class CapturedCalls:
    """A function through CUDA graphs, one per shape of its arguments, captured when the shape occurs for the second time.

    Most shapes of images of many sizes do not occur often enough to make up for the time of a capture. A call that cannot
    be captured, or finds no memory beside the graphs, runs without one.
    """

    def __init__(
        self, function: Callable[..., Tensor], device: torch.device, what: str, interrupted: Callable[[], None]
    ):
        """function: takes tensors in any nesting that `torch.utils._pytree` knows, and returns a tensor.

        device: of the tensors that a graph reads. what: is done by the calls, such as `training`. interrupted:
        is called after a call that was broken off, before it is made again without a graph.
        """
        self._function, self._device, self._what, self._interrupted = function, device, what, interrupted
        self._graphs: dict[Hashable, CapturedCall] = {}
        self._seen: set[Hashable] = set()
        self._made_room_for: set[Hashable] = set()
        self._given_up = False
        self._stream = self._new_stream()

    def _new_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(priority=-1)  # before that of `GradientSink`

    @property
    def captured(self) -> int:
        """Number of graphs."""
        return len(self._graphs)

    def __call__(self, *arguments) -> Tensor:
        leaves, structure = tree_flatten(arguments)
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        again, room = key in self._seen, len(self._graphs) < MAX_GRAPHS and not self._given_up
        self._seen.add(key)
        capture = again and room and key not in self._graphs and self._pays(key)
        try:
            if capture:
                self._graphs[key] = self._capture(leaves, structure)
                return self._graphs[key].result()
            if key in self._graphs:
                return self._graphs[key]([x for x in leaves if isinstance(x, Tensor)])
            return self._measured(key, arguments) if again and room else self._function(*arguments)
        except CannotCaptureError as error:
            self._give_up(str(error))
        except torch.OutOfMemoryError:
            if not (capture or self._graphs):
                raise
            if key in self._made_room_for or not self._graphs:
                self._give_up("the GPU has no memory left for it")
            self._made_room_for.add(key)  # by freeing all graphs below
        self._interrupted()
        self.forget()  # outside the except block, because the exception keeps the attempt's tensors alive
        return self._function(*arguments)

    def _pays(self, key: Hashable) -> bool:
        """Whether to capture a call whose shape occurs again."""
        return True

    def _measured(self, key: Hashable, arguments: tuple) -> Tensor:
        """A call without a graph whose shape occurs again: what it shows may decide about a capture."""
        return self._function(*arguments)

    def _capture(self, leaves: list, structure) -> CapturedCall:
        static = [x.to(self._device, copy=True) if isinstance(x, Tensor) else x for x in leaves]
        arguments = tree_unflatten(static, structure)
        tensors = [x for x in static if isinstance(x, Tensor)]
        return self._captured_call(lambda: self._function(*arguments), tensors, self._any_graph())

    def _captured_call(
        self, call: Callable[[], Tensor], tensors: list[Tensor], beside: CapturedCall | None
    ) -> CapturedCall:
        return CapturedCall(call, tensors, self._stream, beside)

    def _any_graph(self) -> CapturedCall | None:  # not a local variable of the caller, which would keep the graph alive
        return next(iter(self._graphs.values()), None)

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        tqdm.write(
            f"note: {self._what} cannot be captured as a CUDA graph ({reason}), and goes on without graphs, more slowly."
        )

    def forget(self) -> None:
        """Frees all graphs, and memory that is kept only for speed. A shape that occurs again is captured again."""
        self._graphs.clear()
        free_memory()


def _free_generators() -> None:
    """A capture that fails leaves the GPU's generator in it, which would raise when it is next used: it gets a new state."""
    for generator in torch.cuda.default_generators:
        fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
        generator.graphsafe_set_state(fresh.graphsafe_get_state())


def free_memory() -> None:
    """Frees the GPU memory that is kept between calls only for speed."""
    gc.collect()
    torch.cuda.empty_cache()
