"""Generation parameters stored in a PNG, in the text format that the PNG Info tab of A1111, Forge and others reads."""

import json
import re

from PIL.PngImagePlugin import PngInfo

from sliders import __version__
from sliders.report.page import multiplier_label
from sliders.sample.templates import Variant

NEGATIVE = "Negative prompt:"


def infotext(variant: Variant, negative: str, fields: dict[str, str | int | float], hashes: dict[str, str]) -> str:
    """The prompt with its `<lora:…>` tags, the negative prompt, and one line of `Key: value` pairs in the order of `fields`.

    The first line that starts with `Negative prompt:` begins the negative prompt, so tags come first in a prompt that
    does, and the negative prompt is one line: line breaks are spaces to the text encoders. Our noise is the CPU's, which
    A1111 assumes only where `RNG` says so. hashes: {slider name: SHA-256 of its file after the header}. A1111 stores the
    first twelve digits, and leaves out of names what separates them.
    """
    words = [variant.text, *(f"<lora:{name}:{multiplier_label(m)}>" for name, m in variant.multipliers)]
    lines = [" ".join(words[1:] + words[:1] if variant.text.startswith(NEGATIVE) else words).strip()]
    if negative := " ".join(negative.split()):
        lines.append(f"{NEGATIVE} {negative}")
    digests = ", ".join(f"{re.sub('[:,]', '', name)}: {digest[:12]}" for name, digest in hashes.items())
    shown = {**fields, "RNG": "CPU", "Lora hashes": digests, "Version": f"fractional-sliders {__version__}"}
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in shown.items()))
    return "\n".join(lines)


def _quoted(value: str | int | float) -> str:
    """The value as text, in JSON quotes if it contains a character that separates fields, or spaces at its ends."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    plain = text == text.strip() and not any(c in text for c in ',:\n"')
    return text if plain else json.dumps(text, ensure_ascii=False)


def png_info(text: str) -> PngInfo:
    """Metadata for Pillow's `save(pnginfo=…)`."""
    info = PngInfo()
    info.add_text("parameters", text)
    return info
