"""The denoiser as CUDA graphs while pictures are sampled."""

import time
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Self

import torch
from torch import Tensor, nn

from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.patches import Patches
from sliders.fast.graphs import CapturedCall, CapturedCalls

WORTH = 6  # calls that make up for a capture
BEHIND = 1 / 3  # of the time of launching a call: if the GPU needs longer to catch up afterwards, it has hardly waited


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all captures on a GPU, because PyTorch keeps workspaces for each stream for as long as it runs."""
    return torch.cuda.Stream(device)


class CapturedDenoiser:
    """In its `with` block, calls of `denoiser` replay a CUDA graph, one per shape, where that pays.

    Prompts, latents, timesteps and multipliers are copied into the graph's own tensors, so that one graph serves every
    step of every picture.
    """

    def __init__(self, denoiser: nn.Module, networks: Sequence[AdaptorNetwork], enabled: bool):
        """networks: all that are attached to `denoiser`. enabled: False changes nothing, as without CUDA."""
        self._denoiser, self._networks, self._enabled = denoiser, networks, enabled
        self._patches = Patches()

    def __enter__(self) -> Self:
        if self._enabled:
            self._forward = self._denoiser.forward
            self._calls = CallsOfPictures(self._with_multipliers, self._denoiser.device)
            self._patches.replace(self._denoiser, self._replayed)
        return self

    def __exit__(self, *_) -> None:
        self._patches.restore()
        self.forget()

    @property
    def captured(self) -> int:
        """Number of graphs."""
        return self._calls.captured if self._enabled else 0

    def expect(self, calls: int) -> None:
        """calls: how many are still to come that are shaped like the next one."""
        if self._enabled:
            self._calls.left = calls

    def forget(self) -> None:
        """Frees all graphs. A shape that occurs again is captured again."""
        if self._enabled:
            self._calls.forget()

    def _replayed(self, *args, **kwargs) -> tuple[Tensor]:
        """The denoiser's `forward` with `return_dict=False`."""
        multipliers = [network.multipliers for network in self._networks]
        try:
            return (self._calls(multipliers, args, kwargs),)
        finally:
            self._set(multipliers)

    def _with_multipliers(self, multipliers: list[Tensor | None], args: tuple, kwargs: dict) -> Tensor:
        self._set(multipliers)
        return self._forward(*args, **kwargs)[0]

    def _set(self, multipliers: list[Tensor | None]) -> None:
        for network, rows in zip(self._networks, multipliers, strict=True):
            if network.multipliers is not rows:
                network.set_multipliers(rows)


class CallsOfPictures(CapturedCalls):
    """A shape's second call measures whether launching its kernels takes longer than running them.

    If so, and if enough calls are `left`, the third is captured.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device):
        super().__init__(function, device, "sampling", lambda: None)
        self.left = 0  # calls
        self._launching: dict[Hashable, bool] = {}  # shape → whether launching takes longer than running

    def _new_stream(self) -> torch.cuda.Stream:
        return _side_stream(torch.cuda.current_device())

    def __call__(self, *arguments) -> Tensor:
        try:
            return super().__call__(*arguments)
        finally:
            self.left -= 1

    def _pays(self, key: Hashable) -> bool:
        return self.left >= WORTH and self._launching.get(key, False)

    def _measured(self, key: Hashable, arguments: tuple) -> Tensor:
        """The call on the graphs' stream, which warms that up for a capture.

        Where launching takes longer, the GPU is done soon after the last launch. Where running does, it is far behind, and
        has work while this waits for it. The stream's memory is not reused too early: all its uses wait for the current one.
        """
        if self.left < WORTH or key in self._launching:
            return self._function(*arguments)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            began = time.perf_counter()
            result = self._function(*arguments)
            launched = time.perf_counter()
            self._stream.synchronize()
            behind = time.perf_counter() - launched
        self._launching[key] = behind < (launched - began) * BEHIND
        return result

    def _captured_call(
        self, call: Callable[[], Tensor], tensors: list[Tensor], beside: CapturedCall | None
    ) -> CapturedCall:
        return CapturedCall(call, tensors, self._stream, beside, warm_ups=0)
