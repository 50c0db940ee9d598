"""The sidecar `STEM.json`, which A1111 and Forge show as the slider's card."""

import json
from collections.abc import Sequence
from pathlib import Path

from sliders.config.schema import Settings
from sliders.formats.model_loras import lora_tag
from sliders.models import Family
from sliders.report.web_ui import multiplier_template
from sliders.system.files import atomic_write


def sidecar(settings: Settings, stem: str, family: Family) -> dict[str, str | float]:
    """Exactly six keys: A1111 shows and rewrites these and no others."""
    first, data = settings.prompts[0], settings.data
    tags = " ".join(lora_tag(lora.file.stem, lora.weight) for lora in settings.pretrained_model.loras)
    return {
        "description": f"Concept slider {settings.save.name}, made with fractional-sliders",
        "sd version": family.facts.webui_version,
        "activation text": first.activation_text,
        "preferred weight": middle_scale(data.scales),
        "negative text": first.negative_text,
        "notes": (
            f"Trained at {data.trained_at}{f' on the model with {tags}' if tags else ''}.\n"
            "All of them side by side, with Dynamic Prompts in combinatorial mode and a fixed seed:\n"
            f"{multiplier_template(stem, data.scales)}"
        ),
    }


def middle_scale(scales: Sequence[float]) -> float:
    """The scale nearest to the middle of the ascending `scales` (of two, the higher) that is above 0 and at most 2, else 1.

    A1111's form holds 0 to 2, and 0 means no preference.
    """
    middle = scales[len(scales) // 2]
    return min((s for s in scales if 0 < s <= 2), key=lambda s: abs(s - middle), default=1.0)


def write_sidecar(path: Path, settings: Settings, family: Family) -> None:
    """`STEM.json` beside the slider at `path`."""
    _write(path.with_suffix(".json"), sidecar(settings, path.stem, family))


def _write(path: Path, content: dict) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


def add_to_notes(slider: Path, start: str, sentence: str) -> None:
    """Adds `sentence` to the notes in the sidecar of `slider`, if it has one, in place of an earlier line with that `start`.

    Keeps everything else, which the user may have changed. Raises OSError.
    """
    path = slider.with_suffix(".json")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        lines = [line for line in card["notes"].splitlines() if not line.startswith(start)]
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):  # none, or not one of ours any more
        return
    card["notes"] = "\n".join([*lines, sentence])
    _write(path, card)
