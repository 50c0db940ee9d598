"""Generation parameters stored in a PNG, in the text format that the PNG Info tab of A1111, Forge and others reads."""

import json

from PIL.PngImagePlugin import PngInfo

from sliders import __version__
from sliders.sample.templates import Variant


def infotext(variant: Variant, negative: str, fields: dict[str, str | int | float], hashes: dict[str, str]) -> str:
    """The prompt with its `<lora:…>` tags, the negative prompt, and one line of `Key: value` pairs in the order of `fields`.

    hashes: {slider name: SHA-256 of its file after the header}. A1111 stores the first twelve digits.
    """
    tags = [f"<lora:{name}:{m:g}>" for name, m in variant.multipliers]
    lines = [" ".join([variant.text, *tags]).strip()]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    digests = ", ".join(f"{name}: {digest[:12]}" for name, digest in hashes.items())
    shown = {**fields, "Lora hashes": digests, "Version": f"fractional-sliders {__version__}"}
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in shown.items()))
    return "\n".join(lines)


def _quoted(value: str | int | float) -> str:
    """The value as text, in JSON quotes if it contains a character that separates fields."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def png_info(text: str) -> PngInfo:
    """Metadata for Pillow's `save(pnginfo=…)`."""
    info = PngInfo()
    info.add_text("parameters", text)
    return info
