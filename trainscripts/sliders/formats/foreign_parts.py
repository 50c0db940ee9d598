"""Variants of LyCORIS' algorithms that split a factor further → the parts of ours, which compute the same.

A Tucker decomposition (`use_tucker`, formerly `use_cp`) of a convolution keeps the kernel in a tensor of its own,
`decompose_both` splits the first factor of a LoKr. No product is approximated.
"""

import torch

from sliders.adaptors.base import ALPHA
from sliders.formats.spelling import Module

MID = "lora_mid.weight"
VARIANT_PARTS = (MID, "hada_t1", "hada_t2", "lokr_t2", "lokr_w1_a", "lokr_w1_b")
# {end of a key: what a file with it is}, which no adaptor of ours can be
UNREADABLE = {
    **dict.fromkeys(("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"),
                    "a DoRA, which is no sum of the model's weights and a difference that a row could scale"),
    **dict.fromkeys(("oft_blocks", "oft_diag", "oft_R", "oft_R.weight"), "an OFT or BOFT, which is not linear in its multiplier"),
    **dict.fromkeys(("on_input", "ia3_l"), "an IA³, which scales a layer's inputs or outputs"),
    **dict.fromkeys(("w_norm", "b_norm"), "a LyCORIS with trained norms, which stay frozen here"),
    **dict.fromkeys(("diff_b", "lora_B.bias", "bias_values"), "one with trained biases, which stay frozen here"),
}  # fmt: skip


def what_is(key: str) -> str | None:
    """What a file with this key is, if it cannot be read for that."""
    return next((what for end, what in UNREADABLE.items() if key.endswith(f".{end}")), None)


def plain_parts(parts: Module) -> Module:
    """Parts of one layer, without what `VARIANT_PARTS` name. Raises what torch does if their sizes do not fit each other."""
    if not any(part in parts for part in VARIANT_PARTS):
        return parts
    found = {part: t if part == ALPHA else t.float() for part, t in parts.items()}
    if MID in found and "lora_down.weight" in found:  # [r, r, kh, kw] between up [out, r, 1, 1] and down [r, in, 1, 1]
        down = found["lora_down.weight"].flatten(1)
        found["lora_down.weight"] = torch.einsum("ijkl,jn->inkl", found.pop(MID), down)
    for number in (1, 2):
        if f"hada_t{number}" in found:
            _without_core(found, f"hada_t{number}", f"hada_w{number}_a", f"hada_w{number}_b")
    if "lokr_t2" in found:
        _without_core(found, "lokr_t2", "lokr_w2_a", "lokr_w2_b")
    if "lokr_w1_a" in found and "lokr_w1_b" in found:
        rank = len(found["lokr_w1_b"])
        found["lokr_w1"] = found.pop("lokr_w1_a") @ found.pop("lokr_w1_b")
        if "lokr_w2" in found and ALPHA in found:  # ours would have no gain
            found["lokr_w1"] *= float(found[ALPHA]) / rank
    return found


def _without_core(parts: Module, core: str, first: str, second: str) -> None:
    """core [r, r, kh, kw], first [r, out], second [r, in] → first [out, r], second [r, in · kh · kw]."""
    if first in parts and second in parts:
        product = torch.einsum("ijkl,jn->inkl", parts.pop(core), parts[second])
        parts[first], parts[second] = parts[first].T.contiguous(), product.flatten(1)
