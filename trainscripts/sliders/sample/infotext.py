"""The text in a PNG by which A1111's PNG Info, Forge and others read a picture's settings back."""

import json

from PIL.PngImagePlugin import PngInfo

from sliders import __version__
from sliders.sample.templates import Variant


def infotext(
    variant: Variant, negative: str, fields: dict[str, str | int | float], hashes: dict[str, str] | None = None
) -> str:
    """Prompt with its `<lora:…>` tags, negative prompt, and one line of `Key: value` pairs in the order of `fields`.

    `hashes`: {slider: sha256 of what stands behind the header of its file}, of which A1111 keeps twelve digits.
    """
    tags = [f"<lora:{name}:{m:g}>" for name, m in variant.multipliers]
    lines = [" ".join([variant.text, *tags]).strip()]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    shown = {**fields}
    if hashes:
        shown["Lora hashes"] = ", ".join(f"{name}: {digest[:12]}" for name, digest in hashes.items())
    shown["Version"] = f"fractional-sliders {__version__}"
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in shown.items()))
    return "\n".join(lines)


def _quoted(value: str | int | float) -> str:
    """As it is, unless it holds what parts fields; then as a JSON string."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def png_info(text: str) -> PngInfo:
    """Metadata for Pillow's `save(pnginfo=…)`."""
    info = PngInfo()
    info.add_text("parameters", text)
    return info
