"""What is watched while a run trains: numbers that are not finite, and an adaptor that does not move."""

import math

import torch
from torch import Tensor
from tqdm import tqdm

from sliders.data.dataset import ScaleFolders
from sliders.system.errors import InputError
from sliders.train.journal import StepResult

MOVED_WITHIN = 100  # steps


class NonFiniteError(InputError):
    """Training ran into infinities or NaN. `step`: how many steps the weights have learnt from, up to there."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Watch:
    """Reads what steps left on the device, in their order."""

    def __init__(self, data: ScaleFolders, master: Tensor, tolerated: int):
        """tolerated: steps in a row that may be not finite. master: the weights, as they are before the first step."""
        self._data, self._master, self._tolerated = data, master, tolerated
        self._row: list[StepResult] = []  # the latest steps, as far back as none of them was finite
        self._seen, self._pushed = 0, False
        self._start = _sum_of_bits(master)

    def read(self, results: list[StepResult]) -> list[tuple[float, float]]:
        """(loss, gradient norm) of several steps: the only wait for the device. Raises NonFiniteError, with the adaptor
        as it was before the first of the row that was not finite."""
        values = [tuple(pair) for pair in torch.stack([r.values for r in results]).tolist()]
        for result, pair in zip(results, values, strict=True):
            if all(map(math.isfinite, pair)):
                self._row = []
                continue
            self._row.append(result)
            if len(self._row) > self._tolerated:
                raise NonFiniteError(self._sentence(), self._row[0].step)
            tqdm.write(f"note: loss or gradient is not finite at {self._place(result)}: left out.")
        self._pushed = self._pushed or any(norm > 0 for _, norm in values)
        before, self._seen = self._seen, self._seen + len(results)
        if before < MOVED_WITHIN <= self._seen and not (self._pushed and _sum_of_bits(self._master) != self._start):
            tqdm.write(
                f"note: {self._seen} steps have not moved the adaptor at all: raise train.lr, check that the folders' images "
                "differ, or choose another train.loss."
            )
        return values

    def _sentence(self) -> str:
        many = f", the last of {len(self._row)} in a row," if len(self._row) > 1 else ""
        return (
            f"train: loss or gradient is not finite at {self._place(self._row[-1])}{many}: lower train.lr, set "
            "train.max_grad_norm: 1.0 or train.skip_nonfinite: 3, or use precision float32, and go on with --resume from the "
            "state before it."
        )

    def _place(self, result: StepResult) -> str:
        data = self._data
        pairs = "; ".join(
            f"{data.names[p.name]} at {data.scales[p.low]:g} and {data.scales[p.high]:g}, timestep {p.timestep}"
            for p in result.draw.pairs
        )
        return f"step {result.step + 1} ({pairs})"


def _sum_of_bits(master: Tensor) -> int:
    return master.detach().view(torch.int32).sum(dtype=torch.int64).item()
