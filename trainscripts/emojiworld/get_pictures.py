"""Gets the emoji pictures from two npm packages and writes the archive that this world reads. No picture of them is tracked.

    uv run --group emoji trainscripts/emojiworld/get_pictures.py

Rendered pictures: @lobehub/fluent-emoji-3d; flat drawings: @iconify-json/fluent-emoji-flat; both MIT, after Microsoft's
Fluent Emoji. Needs npm, and the packages emoji (names) and resvg-py (drawings).
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops
from sliders.system.errors import InputError

from emojiworld.pictures import PICTURES, SPRITE, STYLES, TONES, write_archive

RENDERED = "@lobehub/fluent-emoji-3d@1.1.0"
DRAWN = "@iconify-json/fluent-emoji-flat@1.2.6"
SIDE = 256  # px, of the rendered pictures
SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
MEASURED = {"large", "medium", "small", "flat"}  # words of attributes, which no caption may have
ONE_SIDED = re.compile(r"left|right|clock|button|arrow|east|west")  # names whose mirror image would be wrong


def main() -> int:
    arguments = parse_arguments()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            rendered, drawn = (unpacked(package, Path(temporary)) for package in (RENDERED, DRAWN))
            entries, pictures = collect(rendered, drawn)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_archive(arguments.out, entries, pictures)
    toned = sum(len(entry["codes"]) == TONES for entry in entries)
    size = arguments.out.stat().st_size / 2**20
    print(
        f"wrote {arguments.out}: {len(entries)} names, {toned} in {TONES} skin tones, {len(pictures)} pictures, {size:.1f} MiB"
    )
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURES)
    return parser.parse_args()


def unpacked(package: str, folder: Path) -> Path:
    """The package's folder. Raises InputError without npm, or if npm cannot get the package."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm was not found: install Node.js with npm, which gets the packages of emoji pictures.")
    done = subprocess.run([npm, "pack", "--silent", package], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise InputError(f"npm cannot get {package} ({reason}): check npm's registry and your network.")
    archive = folder / done.stdout.strip().splitlines()[-1]
    target = folder / archive.stem
    with tarfile.open(archive) as files:
        files.extractall(target, filter="data")
    return target / "package"


def collect(rendered: Path, drawn: Path) -> tuple[list[dict], dict[str, Image.Image]]:
    """Entries and pictures for `write_archive`: of all names that are drawn and rendered, and of letters only."""
    bodies = json.loads((drawn / "icons.json").read_text(encoding="utf-8"))["icons"]
    icons = json.loads((drawn / "chars.json").read_text(encoding="utf-8"))
    entries, pictures = [], {}
    for name, codes in sorted(named(rendered / "assets").items()):
        plain = [code.replace("-fe0f", "") for code in codes]
        drawings = [icons.get(code) or icons.get(short) for code, short in zip(codes, plain, strict=True)]
        if None in drawings:
            continue
        solid = in_order([rendering(rendered / "assets" / f"{code}.webp") for code in codes])
        found = {f"3d/{code}": picture for code, picture in zip(codes, solid, strict=True)}
        found |= {f"flat/{code}": drawing(bodies[icon]["body"]) for code, icon in zip(codes, drawings, strict=True)}
        pictures |= cropped(found)
        entries.append({"name": name, "mirror": not ONE_SIDED.search(name), "codes": codes})
    return entries, {
        f"{style}/{code}": pictures[f"{style}/{code}"] for e in entries for code in e["codes"] for style in STYLES
    }


def named(assets: Path) -> dict[str, list[str]]:
    """{name: codes}: five codes from light to dark where there are skin tones (the yellow one is left out), else one."""
    import emoji

    found: dict[str, dict[str, str]] = defaultdict(dict)
    for file in sorted(assets.glob("*.webp")):
        if not re.fullmatch(r"[0-9a-f]+(-[0-9a-f]+)*", file.stem):
            continue
        entry = emoji.EMOJI_DATA.get("".join(chr(int(code, 16)) for code in file.stem.split("-")))
        if entry is None:
            continue
        name, tone = split_tone(entry["en"].strip(":"))
        if name and not MEASURED & set(name.split()):
            found[name].setdefault(tone, file.stem)
    every = {
        name: [tones[tone] for tone in SKIN_TONES] for name, tones in found.items() if set(SKIN_TONES) <= set(tones)
    }
    return {name: [tones[""]] for name, tones in found.items() if "" in tones} | every


def split_tone(name: str) -> tuple[str, str]:
    """ "waving_hand_medium-dark_skin_tone" → ("waving hand", "medium-dark"); the name is empty if it has other than letters."""
    match = re.search(r"_((?:medium-)?(?:light|dark)|medium)_skin_tone", name)
    text, tone = (name.replace(match[0], ""), match[1]) if match else (name, "")
    text = unicodedata.normalize("NFC", text).lower()
    words = re.sub(r"[’'.:!“”,()]", "", text).replace("-", " ").replace("_", " ").split()
    return (" ".join(words) if words and all(word.isascii() and word.isalpha() for word in words) else ""), tone


def rendering(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def in_order(pictures: list[Image.Image]) -> list[Image.Image]:
    """The second and the third of five skin tones exchanged if the third is the lighter one.

    In the package of rendered pictures medium-light and medium are exchanged for nearly all names. Sorting all five by
    brightness would not do: to medium-light belongs blond hair, to light black hair.
    """
    if len(pictures) != TONES:
        return pictures
    second, third = (np.asarray(picture.convert("RGBa"), dtype=np.float32)[..., :3].mean() for picture in pictures[1:3])
    return [pictures[i] for i in ((0, 2, 1, 3, 4) if third > second else range(TONES))]


def drawing(body: str) -> Image.Image:
    """body: the inside of an SVG of 32 × 32 units."""
    import resvg_py

    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE}" height="{SIDE}" viewBox="0 0 32 32">{body}</svg>'
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")


def cropped(pictures: dict[str, Image.Image]) -> dict[str, Image.Image]:
    """The pictures of one name, cut to the smallest square around what any of them shows, SPRITE px wide."""
    shown = Image.new("L", (SIDE, SIDE))
    for picture in pictures.values():
        shown = ImageChops.lighter(shown, picture.getchannel("A").point(lambda value: 255 * (value > 32)))
    left, top, right, bottom = shown.getbbox()
    half = max(right - left, bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    box = tuple(round(edge) for edge in (x - half, y - half, x + half, y + half))
    return {
        name: picture.crop(box).resize((SPRITE, SPRITE), Image.Resampling.LANCZOS) for name, picture in pictures.items()
    }


if __name__ == "__main__":
    sys.exit(main())
