"""Checks everything about a sampling run that can be checked before weights are loaded."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter
from torch import nn

from sliders.compute.device import is_gpu_missing, torch_device, why_no_gpu
from sliders.config.schema import Data
from sliders.data.dataset import ScaleFolders
from sliders.formats.lora_files import LoRAFile, read_lora
from sliders.formats.metadata import trained_scales
from sliders.formats.model_loras import lora_tag, loras_below
from sliders.models import Family, find_family
from sliders.report.learned_measures import check_lpips
from sliders.report.page import multiplier_label
from sliders.report.yardstick import card_multipliers, check_folders
from sliders.sample.preview import completed, preview_multipliers
from sliders.sample.rungs import Rung, Scene, rungs_and_scenes
from sliders.sample.sampling import Sampling, pixels_per_batch, rows_within
from sliders.sample.settings import MAX_PICTURES, Pixels, SampleSettings
from sliders.sample.templates import Group, Variant, expand, group, web_ui_syntax
from sliders.system.errors import InputError, either
from sliders.system.files import check_folder, check_listable

SIZE = TypeAdapter(tuple[Pixels, Pixels])


@dataclass(frozen=True)
class SamplePlan:
    """A sampling run that has passed all checks."""

    family: Family
    weightless: nn.Module  # the denoiser on the meta device, by which files are read
    groups: tuple[Group | Scene, ...]
    sliders: dict[str, Path]  # {name in a prompt: file}, only those that the prompts name
    hashes: dict[str, str]  # {name: SHA-256 of the slider's tensors}, for the PNGs' infotext
    sampling: Sampling
    device: str
    notes: tuple[str, ...]  # about input that is valid but perhaps not intended
    measured_by: ScaleFolders | None = None  # the folders to measure the first slider by
    rungs: tuple[Rung, ...] = ()  # of a ladder, whose groups are scenes
    beside: tuple[str, ...] = ()  # LoRAs in the prompts with which the first slider was not trained, as tags


def make_plan(settings: SampleSettings) -> SamplePlan:
    """Checks the settings against the files and the device. Raises InputError for anything that would stop the run later."""
    device, family = torch_device(settings.device), find_family(settings.family, settings.model)
    family.check_source(settings.model)
    if settings.sampler is not None and settings.sampler not in family.samplers:
        raise InputError(
            f"--sampler: {settings.sampler} cannot sample from {family.facts.title}, but only the model's own can: leave it out."
        )
    flag = "--ladder" if settings.ladder else "--out"
    check_folder(settings.out, flag, f"choose another {flag}", f"000_seed{max(settings.seeds)}_x-0.123.png")
    if settings.out.exists() and any(settings.out.iterdir()) and not settings.overwrite:
        remedy = "choose another folder" if settings.ladder else "choose another folder, or add --overwrite"
        raise InputError(f"{flag}: {settings.out} already contains files: {remedy}.")
    if settings.lpips:
        check_lpips()
    known = known_sliders(settings)
    first = settings.slider[0] if settings.slider else None
    denoiser = family.weightless_denoiser(settings.model.name_or_path)
    checked = {p.stem: read_lora(p, denoiser, family) for p in settings.slider}
    metadata = checked[first.stem].metadata if first else {}
    folders = _folders_of_card(settings, metadata, family) if settings.card is not None else None
    rungs: tuple[Rung, ...] = ()
    added: tuple[float, ...] = ()
    if settings.ladder:
        rungs, groups = rungs_and_scenes(settings, metadata)
    else:
        groups = [g for prompt in settings.prompt for g in _groups(prompt, settings, metadata)]
    if folders is not None:
        groups, added = _for_card(groups, first.stem, folders.scales)
    named = dict.fromkeys(name for g in groups for variant in g.variants for name, _ in variant.multipliers)
    for name in named:
        if name not in known:
            use = f"use {either(sorted(known)[:8])}, or " if known else ""
            raise InputError(
                f"--prompt: <lora:{name}:…> does not name a known slider: {use}add its file with --slider or its folder with --lora_dir."
            )
        if name not in checked:
            checked[name] = read_lora(known[name], denoiser, family)
    count = sum(len(g.variants) for g in groups) * len(settings.seeds)
    if count > MAX_PICTURES:
        raise InputError(f"--prompt: {count} pictures exceed the limit {MAX_PICTURES}: use fewer prompts or --seeds.")
    shown = {name: checked[name] for name in named}
    paths = {name: slider.path for name, slider in shown.items()}
    hashes = {name: slider.model_hash for name, slider in shown.items()}
    sampling = _sampling(settings, metadata, device, family)
    notes = (*_notes(settings, family, groups), *_notes_on_sliders(shown, first, added))
    beside = _beside(groups, first.stem, metadata) if first and not settings.ladder else ()
    return SamplePlan(
        family, denoiser, tuple(dict.fromkeys(groups)), paths, hashes, sampling, device, notes, folders, rungs, beside
    )


def _beside(groups: list[Group], slider: str, metadata: dict[str, str]) -> tuple[str, ...]:
    trained_with = {tag for _, tag in loras_below(metadata)}
    tags = dict.fromkeys(lora_tag(name, m) for g in groups for name, m in g.others if name != slider)
    return tuple(tag for tag in tags if tag not in trained_with)


def _folders_of_card(settings: SampleSettings, metadata: dict[str, str], family: Family) -> ScaleFolders:
    """The folders in `--card` that the slider was trained on."""
    scales = json.loads(metadata.get("sliders.folders", "{}"))
    if not scales:
        raise InputError(
            f"--card: {settings.slider[0]} does not say which folders it was trained on, as text sliders and converted files "
            "do not: leave --card out."
        )
    folders = sorted(scales, key=scales.get)
    data = Data(
        folder_main=settings.card, folders=tuple(folders), scales=tuple(scales[f] for f in folders),
        leave_out=settings.leave_out, incomplete=settings.incomplete,
    )  # fmt: skip
    found = ScaleFolders.find(data, family.facts.size_multiple)
    check_folders(found, "--card")
    return found


def _for_card(groups: list[Group], slider: str, scales: tuple[float, ...]) -> tuple[list[Group], tuple[float, ...]]:
    """The groups with the slider's scales among their multipliers, and those scales that had to be added.

    Raises InputError unless all groups show the slider at the same multipliers. Beside it may be LoRAs at fixed ones.
    """
    found, added = [], {}
    for one in groups:
        multipliers, missing = completed(one.multipliers, scales)
        found.append(replace(one, multipliers=tuple(sorted(multipliers))))
        added |= dict.fromkeys(missing)
        if one.axis != slider or found[-1].multipliers != found[0].multipliers:
            raise InputError(
                f"--card: the prompt {one.title!r} names the slider itself, but the card needs the first slider at the same "
                "multipliers for all prompts: leave it out of --prompt, and use --multipliers."
            )
    return found, tuple(added)


def _notes(settings: SampleSettings, family: Family, groups: list[Group | Scene]) -> Iterator[str]:
    if is_gpu_missing(settings.device):
        full_size = family.is_full_size(settings.model.name_or_path)
        yield why_no_gpu("makes the pictures", full_size, family.facts.title)
    if settings.guidance not in (None, 1) and family.is_distilled(settings.model):
        yield f"--guidance: {settings.guidance:g} has no effect, because {settings.model.name_or_path} is step-distilled."
    if plain := web_ui_syntax([*(v.text for g in groups for v in g.variants), settings.negative]):
        shown = ", ".join(plain[:4]) + (" …" if len(plain) > 4 else "")
        yield f"prompt weights, schedules, BREAK and AND are read as plain text here, unlike in a web UI: {shown}."


def _notes_on_sliders(sliders: dict[str, LoRAFile], first: Path | None, added: tuple[float, ...]) -> Iterator[str]:
    if added:
        shown = ", ".join(map(multiplier_label, added))
        yield f"{shown} is added to the multipliers, because the report card needs all at which {first.stem} was trained."
    for name, slider in sliders.items():
        yield from slider.notes
        if missing := [tag for lora, tag in loras_below(slider.metadata) if lora not in sliders]:
            yield f"{slider.path} was trained on the model with {' '.join(missing)}: add that to the prompt."
        if slider.changes_nothing:
            yield f"{slider.path} changes nothing, because all its weights are zero: its pictures are those of {name} at 0."


def known_sliders(settings: SampleSettings) -> dict[str, Path]:
    """{name in a prompt: file}: the files of --slider, then those in --lora_dir whose names are not taken."""
    known: dict[str, Path] = {}
    for path in settings.slider:
        if path.stem in known:
            raise InputError(
                f"--slider: two files are named {path.stem}: rename one, because prompts refer to sliders by name."
            )
        known[path.stem] = path
    if settings.lora_dir is not None:
        check_listable(settings.lora_dir, "--lora_dir")
        for path in sorted(settings.lora_dir.rglob("*.safetensors")):
            known.setdefault(path.stem, path)
    return known


def _groups(prompt: str, settings: SampleSettings, metadata: dict[str, str]) -> list[Group]:
    """The groups of one template. A template that does not name the first slider shows it at several multipliers."""
    name = settings.slider[0].stem
    variants = expand(prompt, name, MAX_PICTURES, settings.wildcard_dir)
    if not any(name in dict(v.multipliers) for v in variants):
        given, _ = completed(settings.multipliers or (), ())
        multipliers = given or _trained_multipliers(metadata, settings.card is not None)
        variants = [Variant(v.text, ((name, m), *v.multipliers)) for v in variants for m in multipliers]
    return group(variants, name)


def _trained_multipliers(metadata: dict[str, str], for_card: bool) -> tuple[float, ...]:
    """The slider's scales and one step beyond, for a card further; 0, 1 and 2 if the file does not contain them."""
    scales = trained_scales(metadata)
    if len(scales) < 2:
        return 0.0, 1.0, 2.0
    return card_multipliers(scales) if for_card else preview_multipliers(scales)


def trained_size(metadata: dict[str, str], family: Family) -> tuple[int, int]:
    """(width, height) in px of most of the slider's images; otherwise its resolution; otherwise the family's default size."""
    try:
        buckets = json.loads(metadata["ss_bucket_info"])["buckets"].values()
        width, height = SIZE.validate_python(max(buckets, key=lambda bucket: bucket["count"])["resolution"])
    except (KeyError, TypeError, ValueError, AttributeError):  # written by another program, or absent
        square = re.fullmatch(r"(\d+)x(\d+)", metadata.get("modelspec.resolution", ""))
        return (int(square[1]), int(square[2])) if square else (family.facts.default_size, family.facts.default_size)
    return width, height


def _sampling(settings: SampleSettings, metadata: dict[str, str], device: str, family: Family) -> Sampling:
    """Takes the size from the flags, otherwise from the slider."""
    width, height = trained_size(metadata, family)
    multiple = family.facts.picture_multiple
    width, height = settings.width or width, settings.height or height
    for flag, size in (("--width", width), ("--height", height)):
        if size % multiple:
            raise InputError(f"{flag}: {size} is not a multiple of {multiple}: use {size // multiple * multiple}.")
    usual = family.facts.pictures_of(family.is_distilled(settings.model))
    steps = settings.steps or usual.steps
    if settings.from_step >= steps:
        raise InputError(
            f"--from_step: {settings.from_step} is not below {steps}, the model's usual --steps: lower it."
        )
    return Sampling(
        width=width,
        height=height,
        steps=steps,
        guidance=settings.guidance or usual.guidance,
        sampler=settings.sampler,
        from_step=settings.from_step,
        batch_size=settings.batch_size or rows_within(pixels_per_batch(device), width, height),
    )
