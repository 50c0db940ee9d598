"""Texts to paste into an A1111-style web UI."""

from collections.abc import Sequence


def multiplier_template(stem: str, multipliers: Sequence[float]) -> str:
    """`{<lora:STEM:0>|<lora:STEM:0.67>|…}`: one picture per multiplier, the base model's first."""
    return "{" + "|".join(_tags(stem, multipliers)) + "}"


def multiplier_list(stem: str, multipliers: Sequence[float]) -> str:
    """`<lora:STEM:0>, <lora:STEM:0.67>, …`: Prompt S/R replaces the first by each."""
    return ", ".join(_tags(stem, multipliers))


def _tags(stem: str, multipliers: Sequence[float]) -> list[str]:
    return [f"<lora:{stem}:{m:g}>" for m in (0.0, *(m for m in multipliers if m != 0))]
