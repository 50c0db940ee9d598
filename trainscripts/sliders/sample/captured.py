"""The denoiser as CUDA graphs while pictures are sampled."""

import gc
import time
from collections.abc import Sequence
from functools import cache
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from tqdm import tqdm

from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.graphs import CannotCaptureError, CapturedCall

WORTH = 6  # calls that make up for a capture
BEHIND = 1 / 3  # of the time of launching a call: if the GPU needs longer to catch up afterwards, it has hardly waited


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all captures on a GPU, because PyTorch keeps workspaces for each stream for as long as it runs."""
    return torch.cuda.Stream(device)


class CapturedDenoiser:
    """In its `with` block, calls of `unet` replay a CUDA graph, one per shape, where that pays.

    A shape's second call measures whether launching its kernels takes longer than running them. If so, and if `expect`
    has announced enough calls, the third is captured. Prompts, latents, timesteps and multipliers are copied into the
    graph's own tensors, so that one graph serves every step of every picture. A call that cannot be captured, or finds
    no memory beside the graphs, runs without one.
    """

    def __init__(self, unet: nn.Module, networks: Sequence[AdaptorNetwork], enabled: bool):
        """networks: all that are attached to `unet`. enabled: False changes nothing, as without CUDA."""
        self._unet, self._networks, self._enabled = unet, networks, enabled
        self._graphs: dict[tuple, CapturedCall] = {}
        self._seen: set[tuple] = set()
        self._launching: dict[tuple, bool] = {}  # shape → whether launching takes longer than running
        self._left = 0  # calls
        self._given_up = False

    def __enter__(self) -> Self:
        if self._enabled:
            self._stream = _side_stream(torch.cuda.current_device())
            self._shadowed, self._forward = self._unet.__dict__.get("forward"), self._unet.forward
            self._unet.forward = self
        return self

    def __exit__(self, *_) -> None:
        if self._enabled:
            del self._unet.forward
            if self._shadowed is not None:
                self._unet.forward = self._shadowed
            self.forget()

    @property
    def captured(self) -> int:
        """Number of graphs."""
        return len(self._graphs)

    def expect(self, calls: int) -> None:
        """calls: how many are still to come that are shaped like the next one."""
        self._left = calls

    def forget(self) -> None:
        """Frees all graphs. A shape that occurs again is captured again."""
        self._graphs.clear()
        if self._enabled:
            gc.collect()
            torch.cuda.empty_cache()

    def __call__(self, *args, **kwargs) -> tuple[Tensor]:
        """The UNet's `forward` with `return_dict=False`."""
        leaves, structure = tree_flatten((args, kwargs))
        multipliers = [network.multipliers for network in self._networks]
        inputs = [*leaves, *multipliers]
        shape = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in inputs)
        due = shape in self._seen and shape not in self._graphs and self._left >= WORTH and not self._given_up
        self._seen.add(shape)
        self._left -= 1
        try:
            if shape in self._graphs:
                return (self._graphs[shape]([x for x in inputs if isinstance(x, Tensor)]),)
            if due and shape not in self._launching:
                return self._measured(shape, args, kwargs)
            if due and self._launching[shape]:
                self._graphs[shape] = self._capture(leaves, structure, multipliers)
                return (self._graphs[shape].result(),)
            return self._forward(*args, **kwargs)
        except CannotCaptureError as error:
            self._give_up(str(error))
        except torch.OutOfMemoryError:
            if not (due or self._graphs):
                raise
            self._give_up("the GPU has no memory left for it")
        self.forget()  # outside the except block, because the exception keeps the attempt's tensors alive
        return self._forward(*args, **kwargs)

    def _measured(self, shape: tuple, args: tuple, kwargs: dict) -> tuple[Tensor]:
        """The call on the graphs' stream, which warms that up for a capture.

        Where launching takes longer, the GPU is done soon after the last launch. Where running does, it is far behind, and
        has work while this waits for it. The stream's memory is not reused too early: all its uses wait for the current one.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            began = time.perf_counter()
            result = self._forward(*args, **kwargs)
            launched = time.perf_counter()
            self._stream.synchronize()
            behind = time.perf_counter() - launched
        self._launching[shape] = behind < (launched - began) * BEHIND
        return result

    def _capture(self, leaves: list, structure: TreeSpec, multipliers: list[Tensor | None]) -> CapturedCall:
        static, rows = ([self._copied(x) for x in inputs] for inputs in (leaves, multipliers))
        args, kwargs = tree_unflatten(static, structure)

        def call() -> Tensor:
            self._set(rows)
            return self._forward(*args, **kwargs)[0]

        tensors = [x for x in (*static, *rows) if isinstance(x, Tensor)]
        try:
            return CapturedCall(call, tensors, self._stream, next(iter(self._graphs.values()), None), warm_ups=0)
        finally:
            self._set(multipliers)

    def _copied(self, value: object) -> object:
        """A copy on the UNet's device, where a captured call must find its tensors."""
        return value.to(self._unet.device, copy=True) if isinstance(value, Tensor) else value

    def _set(self, multipliers: list[Tensor | None]) -> None:
        for network, rows in zip(self._networks, multipliers, strict=True):
            network.set_multipliers(rows)

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        tqdm.write(
            f"note: the denoiser cannot be captured as a CUDA graph ({reason}); sampling goes on without graphs, more slowly."
        )
