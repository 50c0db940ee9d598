"""Adaptors, one algorithm per file. `ALGORITHMS` maps `network.algo` to them."""

from collections.abc import Mapping

from torch import Tensor

from sliders.adaptors.base import Adaptor
from sliders.adaptors.full import Full
from sliders.adaptors.glora import GLoRA
from sliders.adaptors.loha import LoHa
from sliders.adaptors.lokr import LoKr
from sliders.adaptors.lora import LoRA

ALGORITHMS: dict[str, type[Adaptor]] = {"lora": LoRA, "loha": LoHa, "lokr": LoKr, "glora": GLoRA, "full": Full}


def algo_of(parts: Mapping[str, Tensor]) -> str | None:
    """The algorithm, a key of ALGORITHMS, to which the parts of one layer belong; None if some are missing or unknown."""
    return next((algo for algo, algorithm in ALGORITHMS.items() if algorithm.is_complete(parts)), None)


# {names that users of LyCORIS may try: why they cannot be a slider}
UNSUITABLE = {
    "dora": "DoRA at multiplier 0 is not the base model",
    "boft": "BOFT is not linear in the multiplier",
    "diag-oft": "Diag-OFT is not linear in the multiplier, and some web UIs apply the multiplier twice",
    "ia3": "ComfyUI does not read IA³",
}
