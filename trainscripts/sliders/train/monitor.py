"""Watches a run while it trains, for values that are not finite and for an adaptor that does not change."""

import math

import torch
from torch import Tensor
from tqdm import tqdm

from sliders.data.contract import Checked
from sliders.system.errors import InputError
from sliders.train.step import StepResult

MOVED_WITHIN = 100  # steps


class NonFiniteError(InputError):
    """Training produced infinities or NaN. `step`: the number of steps that were taken before them."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Watch:
    """Reads the values that steps leave on the device, in the order of the steps."""

    def __init__(self, data: Checked, master: Tensor, tolerated: int):
        """tolerated: how many steps in a row may have non-finite values. master: the weights, before the first step."""
        self._data, self._master, self._tolerated = data, master, tolerated
        self._row: list[StepResult] = []  # the steps since the last finite one
        self._seen, self._pushed = 0, False
        self._start = sum_of_bits(master)

    def read(self, results: list[StepResult]) -> list[tuple[float, float]]:
        """(loss, gradient norm) of each step. Training waits for the device only here.

        Raises NonFiniteError after too many steps in a row that were not finite. None of these has changed the weights.
        """
        values = [tuple(pair) for pair in torch.stack([r.values for r in results]).tolist()]
        for result, pair in zip(results, values, strict=True):
            if all(map(math.isfinite, pair)):
                self._row = []
                continue
            self._row.append(result)
            if len(self._row) > self._tolerated:
                raise NonFiniteError(self._sentence(), self._row[0].step)
            tqdm.write(f"note: loss or gradient is not finite at {self._place(result)}: skipped.")
        self._pushed = self._pushed or any(norm > 0 for _, norm in values)
        before, self._seen = self._seen, self._seen + len(results)
        if before < MOVED_WITHIN <= self._seen and not (self._pushed and sum_of_bits(self._master) != self._start):
            tqdm.write(
                f"note: the adaptor has not changed in {self._seen} steps: raise train.lr, check that the folders' images differ, or "
                "choose another train.loss."
            )
        return values

    def _sentence(self) -> str:
        many = f", the last of {len(self._row)} in a row," if len(self._row) > 1 else ""
        return (
            f"train: loss or gradient is not finite at {self._place(self._row[-1])}{many}: lower train.lr, set "
            "train.max_grad_norm: 1.0 or train.skip_nonfinite: 3, or use precision float32, and continue with --resume from the "
            "checkpoint before it."
        )

    def _place(self, result: StepResult) -> str:
        rows = "; ".join(map(self._data.place, result.draw.rows))
        return f"step {result.step + 1} ({rows})"


def sum_of_bits(master: Tensor) -> int:
    """A checksum of float32 weights. Waits for the device."""
    return master.detach().view(torch.int32).sum(dtype=torch.int64).item()
