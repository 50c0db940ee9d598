"""What web UIs show beside a slider: `STEM.json`, the card that A1111 and Forge read."""

import json
from collections.abc import Sequence
from pathlib import Path

from sliders.config.schema import Settings
from sliders.models import FAMILIES
from sliders.system.files import written_whole


def card(settings: Settings, stem: str) -> dict[str, str | float]:
    """The card's six keys, and no other: A1111 shows and rewrites exactly these."""
    first, data = settings.prompts[0], settings.data
    scales = ", ".join(f"{folder} = {scale:g}" for folder, scale in zip(data.folders, data.scales, strict=True))
    return {
        "description": f"Concept slider {settings.save.name}, made with fractional-sliders",
        "sd version": FAMILIES[settings.family].facts.webui_version,
        "activation text": first.positive,
        "preferred weight": middle_scale(data.scales),
        "negative text": first.unconditional,
        "notes": (
            f"Trained at {scales}.\n"
            "All of them side by side, with Dynamic Prompts in combinatorial mode and a fixed seed:\n"
            f"{multiplier_template(stem, data.scales)}"
        ),
    }


def middle_scale(scales: Sequence[float]) -> float:
    """The middle of the ascending `scales`, of two the higher, and not 0, which A1111 takes for no preference."""
    middle = len(scales) // 2
    return scales[middle] or scales[middle + 1 if middle + 1 < len(scales) else middle - 1]


def write_card(path: Path, settings: Settings) -> None:
    """`STEM.json` beside the slider at `path`."""
    with written_whole(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card(settings, path.stem), indent=4, ensure_ascii=False), encoding="utf-8")


def multiplier_template(stem: str, multipliers: Sequence[float]) -> str:
    """`{<lora:STEM:0>|<lora:STEM:0.67>|…}`: one picture per multiplier, the base model's first."""
    multipliers = [0.0, *(m for m in multipliers if m != 0)]
    return "{" + "|".join(f"<lora:{stem}:{m:g}>" for m in multipliers) + "}"
