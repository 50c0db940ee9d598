"""The rungs and scenes of a ladder: which pictures become a data set of scale folders, by multiplier or by level of a prompt.

A ladder has a folder for each rung, and in each folder a picture of every scene and seed. With a slider, a rung is one of its
multipliers; without, one of the alternatives in the first `{…|…}` of a prompt.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sliders.formats.cards import read_card
from sliders.formats.metadata import trained_scales
from sliders.report.page import multiplier_label
from sliders.sample.settings import MAX_PICTURES, SampleSettings
from sliders.sample.templates import PROTECTED, TAG, Variant, check_braces, expand
from sliders.system.errors import InputError

EXAMPLE = "'a {young|middle-aged|old} man'"
LONGEST = 40  # characters of a level in the name of its folder
NOT_PLAIN = re.compile(r"[{}]|\$\$|::|__|^[@~]")  # what Dynamic Prompts would read as more than the words of one level


@dataclass(frozen=True)
class Rung:
    folder: str
    scale: float  # the multiplier at which a slider is to produce the folder's pictures


@dataclass(frozen=True)
class Scene:
    """What the pictures of a row share, and the prompt of each."""

    text: str  # the caption: what is the same on all rungs, and with `from_step` the prompt of the steps before it
    variants: tuple[Variant, ...]  # one for each rung


def rungs_and_scenes(settings: SampleSettings, metadata: dict[str, str]) -> tuple[tuple[Rung, ...], list[Scene]]:
    """metadata: of the first slider, empty without one. Raises InputError for prompts that make no ladder."""
    rungs, scenes = _of_slider(settings, metadata) if settings.slider else _of_levels(settings)
    if len(rungs) < 2:
        raise InputError(
            f"--multipliers: {rungs[0].scale:g} alone makes one folder, but a ladder needs two or more: add others."
        )
    captions = [scene.text for scene in scenes]
    if "" in captions and any(captions):
        raise InputError(
            "--prompt: one prompt leaves no words for the captions, but others do: add words that are the same in all its "
            "pictures, or leave it out."
        )
    return rungs, scenes


def _of_slider(settings: SampleSettings, metadata: dict[str, str]) -> tuple[tuple[Rung, ...], list[Scene]]:
    path = settings.slider[0]
    if settings.neutral:
        raise InputError(
            "--neutral: stands for the levels of a prompt, which a ladder of --slider has not: leave it out."
        )
    multipliers = _multipliers(settings, metadata)
    prefix = "x" if settings.shows is None else "shows"
    rungs = tuple(Rung(f"{prefix}{multiplier_label(scale)}", scale) for scale in multipliers)
    scenes = []
    for template in settings.prompt:
        for variant in expand(template, path.stem, MAX_PICTURES, settings.wildcard_dir):
            if path.stem in dict(variant.multipliers):
                raise InputError(
                    f"--prompt: {template!r} names the slider itself, but a ladder shows it at the same multipliers in all prompts: "
                    "leave it out, and use --multipliers."
                )
            variants = [Variant(variant.text, ((path.stem, m), *variant.multipliers)) for m in multipliers.values()]
            scenes.append(Scene(variant.text, tuple(variants)))
    return rungs, scenes


def _multipliers(settings: SampleSettings, metadata: dict[str, str]) -> dict[float, float]:
    """{scale: multiplier}, ascending. Those of --shows, where the slider's card says so; else --multipliers or the trained ones."""
    if settings.shows is not None:
        return _showing(settings, metadata)
    given = settings.multipliers or trained_scales(metadata)
    if not given:
        raise InputError(
            f"--multipliers: is missing, and {settings.slider[0]} does not say at which it was trained: write for example "
            "--multipliers 0.5, 1, 2."
        )
    return {m: m for m in sorted({multiplier_label(m): m for m in given}.values())}


def _showing(settings: SampleSettings, metadata: dict[str, str]) -> dict[float, float]:
    path, card = settings.slider[0], read_card(metadata)
    if card is None:
        raise InputError(
            f"--shows: {path} has no report card, which says what it shows at which multiplier: measure it first with --card DIR."
        )
    found = {scale: card.multiplier_showing(scale) for scale in sorted(set(settings.shows))}
    if missing := [f"{scale:g}" for scale, multiplier in found.items() if multiplier is None]:
        low, high = card.shown_within()
        raise InputError(
            f"--shows: {', '.join(missing)} is not shown by {path} at any usable multiplier (it shows {low:.2g} to {high:.2g}): choose "
            "scales between."
        )
    return found


def _of_levels(settings: SampleSettings) -> tuple[tuple[Rung, ...], list[Scene]]:
    if settings.shows is not None:
        raise InputError(
            "--shows: is about what a slider shows, and there is no --slider: add it, or use --multipliers."
        )
    levels: tuple[str, ...] = ()
    scenes = []
    for template in settings.prompt:
        if (tag := TAG.search(template)) and tag[1] == "slider":
            raise InputError(f"--prompt: {tag[0]} stands for the file of --slider, which is not given: add it.")
        before, own, after = split_levels(template)
        levels = levels or own
        if len(own) != len(levels):
            raise InputError(
                f"--prompt: {template!r} has {len(own)} levels, but the first prompt has {len(levels)}: give all prompts the same number."
            )
        columns = [_expanded(before + level + after, settings) for level in own]
        captions = [_caption(v.text, settings.neutral) for v in _expanded(before + settings.neutral + after, settings)]
        if len({*map(len, columns), len(captions)}) > 1:
            raise InputError(
                f"--prompt: the levels of {template!r} expand to different numbers of prompts: write each level in plain words."
            )
        scenes += [Scene(text, tuple(variants)) for text, *variants in zip(captions, *columns, strict=True)]
    scales = _scales(settings.multipliers, levels)
    return tuple(
        Rung(f"{n}_{_slug(level)}", s) for n, (level, s) in enumerate(zip(levels, scales, strict=True), 1)
    ), scenes


def _expanded(template: str, settings: SampleSettings) -> list[Variant]:
    return expand(template, "", MAX_PICTURES, settings.wildcard_dir)


def split_levels(template: str) -> tuple[str, tuple[str, ...], str]:
    """`a {young|old} man` → `("a ", ("young", "old"), " man")`: the first `{…|…}` that is not a variable's.

    Raises InputError if there is none, or if its alternatives are not plain words and tags.
    """
    text = PROTECTED.sub(lambda match: " " * len(match[0]), template)
    check_braces(text, template)
    depth, start, bars = 0, 0, []
    for at, character in enumerate(text):
        if character == "{":
            if depth == 0:
                start, bars = at, []
            depth += 1
        elif character == "|" and depth == 1:
            bars.append(at)
        elif character == "}":
            depth -= 1
            if depth == 0 and bars and text[start - 1 : start] != "$":
                break
    else:
        raise InputError(
            f"--ladder: {template!r} has no levels, and there is no --slider: write the levels in braces, such as {EXAMPLE}, or add "
            "--slider."
        )
    levels = tuple(template[a + 1 : b].strip() for a, b in pairwise([start, *bars, at]))
    for level in levels:
        if NOT_PLAIN.search(PROTECTED.sub("", level)):
            raise InputError(
                f"--ladder: {level!r} in {template!r} is not a plain level: write the levels in the first braces, such as {EXAMPLE}, and "
                "other alternatives behind them."
            )
    if len(set(levels)) < len(levels):
        raise InputError(f"--ladder: {template!r} has the same level twice: give each level words of its own.")
    return template[:start], levels, template[at + 1 :]


def _caption(text: str, neutral: str) -> str:
    """The prompt without its level. Of commas that stood around it, one stays behind, and none at the ends."""
    return text if neutral else re.sub(r"\s*,(?:\s*,)*", ",", text).strip(", ")


def _scales(given: Sequence[float] | None, levels: tuple[str, ...]) -> tuple[float, ...]:
    """One for each level: those of --multipliers, else whole numbers around 0, as −1, 0, 1, or −2, −1, 1, 2."""
    count = len(levels)
    if given is None:
        half = count // 2
        return tuple(float(n) for n in range(-half, half + 1) if n or count % 2)
    if len(given) != count or len(set(map(multiplier_label, given))) != count:
        raise InputError(
            f"--multipliers: {', '.join(f'{m:g}' for m in given)} does not give each of the {count} levels ({', '.join(levels)}) a "
            "multiplier of its own: list as many, in the order of the levels."
        )
    return tuple(given)


def _slug(level: str) -> str:
    """The level as part of a folder's name, without what file systems and lists of folders give a meaning."""
    return re.sub(r"[^\w-]+", "_", level).strip("_")[:LONGEST].strip("_") or "none"


def names_of_rows(scenes: Sequence[Scene], seeds: Sequence[int]) -> list[list[str]]:
    """[scenes][seeds] → the name that a row's files have in all folders. Zeros in front keep their order in lists."""
    digits = max(2, len(str(len(scenes))))
    return [[f"{number:0{digits}d}_seed{seed}" for seed in seeds] for number in range(1, len(scenes) + 1)]


def caption_files(scenes: Sequence[Scene], names: Sequence[Sequence[str]], folder: Path) -> dict[Path, str]:
    """{file in `folder`: caption} of all rows; none if no scene has words."""
    captions = [(name, scene.text) for scene, own in zip(scenes, names, strict=True) for name in own]
    return {folder / f"{name}.txt": text for name, text in captions if text}
