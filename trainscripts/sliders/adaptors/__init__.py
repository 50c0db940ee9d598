"""Adaptors, one algorithm per file. `ALGORITHMS` maps `network.algo` to them."""

from sliders.adaptors.base import Adaptor
from sliders.adaptors.full import Full
from sliders.adaptors.glora import GLoRA
from sliders.adaptors.loha import LoHa
from sliders.adaptors.lokr import LoKr
from sliders.adaptors.lora import LoRA

ALGORITHMS: dict[str, type[Adaptor]] = {"lora": LoRA, "loha": LoHa, "lokr": LoKr, "glora": GLoRA, "full": Full}

# {names that users of LyCORIS may try: why they cannot be a slider}
UNSUITABLE = {
    "dora": "DoRA at multiplier 0 is not the base model",
    "boft": "BOFT is not linear in the multiplier",
    "diag-oft": "Diag-OFT is not linear in the multiplier, and some web UIs apply the multiplier twice",
    "ia3": "ComfyUI does not read IA³",
}
