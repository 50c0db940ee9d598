"""Runs the sample command: pictures for all prompts, seeds and multipliers, a grid per prompt, and one HTML page."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sliders.compute.device import DTYPES, place, use_device
from sliders.compute.fusion import speed_up, speed_up_vae
from sliders.config.schema import SAMPLERS
from sliders.formats.slider_file import open_slider
from sliders.models.base import Model
from sliders.sample.grids import labelled_grid, to_picture
from sliders.sample.infotext import infotext, png_info
from sliders.sample.learned_measures import ClipScore, Lpips
from sliders.sample.measures import MEASURES
from sliders.sample.page import Chart, Page, Section, Shot, data_uri, multiplier_label, render
from sliders.sample.plan import Plan, make_plan
from sliders.sample.sampling import Row, sample
from sliders.sample.settings import SampleSettings
from sliders.sample.templates import Group
from sliders.system.errors import InputError
from sliders.system.files import written_whole

PAGE = "index.html"
Measure = Callable[[Tensor, Tensor, str], float]  # (picture, the same picture at multiplier 0, prompt) → change


def run(settings: SampleSettings) -> Path:
    """Samples everything and returns the path of the page. Pictures are written as they are made, the page at the end.

    Raises InputError for wrong settings, and if the GPU has no memory for even one picture.
    """
    plan = make_plan(settings)
    for note in plan.notes:
        print(f"note: {note}", flush=True)
    use_device(plan.device)
    try:
        return _run(settings, plan)
    except torch.OutOfMemoryError as error:
        size = f"{plan.sampling.width} × {plan.sampling.height} px"
        raise InputError(
            f"--device: the GPU has too little free memory for even one picture of {size}: lower --width and --height, "
            "or close other programs that use the GPU."
        ) from error


def _run(settings: SampleSettings, plan: Plan) -> Path:
    measures = _measures(settings, plan.device)
    precision = settings.precision or ("float16" if plan.device.startswith("cuda") else "float32")
    model = plan.family.load(settings.model, DTYPES[precision])
    settings.out.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, (group, pictures) in enumerate(_pictures(settings, plan, model), start=1):
        labels = [multiplier_label(m) for m in group.multipliers]
        for seed, row in zip(settings.seeds, pictures, strict=True):
            for multiplier, label, pixels in zip(group.multipliers, labels, row, strict=True):
                text = _parameters(settings, plan, model, group, multiplier, seed)
                path = settings.out / f"{number:02d}_seed{seed}_x{label}.png"
                with written_whole(path) as temporary:
                    to_picture(pixels).save(temporary, format="PNG", pnginfo=png_info(text))
        grid = labelled_grid(pictures, [f"seed {seed}" for seed in settings.seeds], labels)
        with written_whole(settings.out / f"{number:02d}_grid.png") as temporary:
            grid.save(temporary, format="PNG")
        sections.append(_section(group, settings.seeds, pictures, measures))
    path = settings.out / PAGE
    with written_whole(path) as temporary:
        temporary.write_text(render(_page(settings, plan, model, sections)), encoding="utf-8")
    return path


def _pictures(settings: SampleSettings, plan: Plan, model: Model) -> Iterator[tuple[Group, Tensor]]:
    """Yields each group with its pictures [seeds, multipliers, 3, H, W]. Batches run across groups and seeds."""
    device, sampling = plan.device, plan.sampling
    embeds = model.encode_prompts([settings.negative, *(g.text for g in plan.groups)], device)
    model.free_text_encoders()
    place(model.unet, device, model.dtype)
    if device.startswith("cuda"):
        speed_up(model.unet, device)
    model.vae.to(device)
    speed_up_vae(model.vae, device)
    networks = [open_slider(path, model.unet, plan.family) for path in plan.sliders.values()]
    rows = []
    for group in plan.groups:
        variants = [group.at(m) for m in group.multipliers]
        columns = [tuple(v.multiplier(name) for name in plan.sliders) for v in variants]
        rows += [Row(embeds[group.text], seed, multipliers) for seed in settings.seeds for multipliers in columns]
    negative = model.negative(settings.negative, embeds)
    made = iter(tqdm(sample(model, networks, rows, negative, sampling),
                     "sampling", total=len(rows), unit="img"))  # fmt: skip
    for group in plan.groups:
        shape = (len(settings.seeds), len(group.multipliers), 3, sampling.height, sampling.width)
        yield group, torch.stack([next(made) for _ in range(shape[0] * shape[1])]).view(shape)


def _measures(settings: SampleSettings, device: str) -> dict[str, Measure]:
    """{title: measure} of all measures that the settings ask for."""

    def without_prompt(measure: Callable[[Tensor, Tensor], float]) -> Measure:
        return lambda picture, base, _: measure(picture, base)

    found = {title: without_prompt(measure) for title, measure in MEASURES.items()}
    if settings.clip is not None:
        score, fixed = ClipScore(settings.clip, device), settings.clip_text

        def increase(picture: Tensor, base: Tensor, prompt: str) -> float:
            text = prompt if fixed is None else fixed
            return score(to_picture(picture), text) - score(to_picture(base), text)

        found["ΔCLIP"] = increase
    if settings.lpips:
        found["LPIPS"] = without_prompt(Lpips(device))
    return found


def _section(group: Group, seeds: tuple[int, ...], pictures: Tensor, measures: dict[str, Measure]) -> Section:
    base = group.multipliers.index(0.0)
    shots = [
        Shot(seed, [data_uri(to_picture(pixels)) for pixels in row]) for seed, row in zip(seeds, pictures, strict=True)
    ]
    charts = [
        Chart(name, group.multipliers, [[measure(p, row[base], group.text) for p in row] for row in pictures])
        for name, measure in measures.items()
    ]
    return Section(group.title, group.multipliers, shots, charts if len(group.multipliers) > 1 else ())


def sampler_name(settings: SampleSettings, model: Model) -> str:
    """The sampler as A1111 names it. The model's own scheduler goes by its class name if no sampler has the same options."""
    if settings.sampler is not None:
        return SAMPLERS[settings.sampler][2]
    scheduler = model.scheduler
    own = type(scheduler).__name__
    for cls, options, shown in SAMPLERS.values():
        if cls == own and options.items() <= dict(scheduler.config).items():
            return shown
    return own.removesuffix("Scheduler")


def _model_name(settings: SampleSettings) -> str:
    """A hub id unchanged; a single file by its stem, as in web UIs; a folder by its last two path components."""
    path = Path(settings.model.name_or_path)
    if not path.exists():
        return settings.model.name_or_path
    return path.stem if path.is_file() else "/".join(path.resolve().parts[-2:])


def _parameters(
    settings: SampleSettings, plan: Plan, model: Model, group: Group, multiplier: float, seed: int
) -> str:  # fmt: skip
    """The infotext of one picture."""
    sampling = plan.sampling
    fields: dict[str, str | int | float] = {
        "Steps": sampling.steps,
        "Sampler": sampler_name(settings, model),
        "CFG scale": sampling.guidance,
        "Seed": seed,
        "Size": f"{sampling.width}x{sampling.height}",
        "Model": _model_name(settings),
    }
    if settings.model.clip_skip is not None:
        fields["Clip skip"] = settings.model.clip_skip + model.facts.webui_clip_skip
    if sampling.from_step:
        fields["Slider from step"] = sampling.from_step
    variant = group.at(multiplier)
    return infotext(variant, settings.negative, fields, {name: plan.hashes[name] for name, _ in variant.multipliers})


def _page(settings: SampleSettings, plan: Plan, model: Model, sections: list[Section]) -> Page:
    sampling, first = plan.sampling, settings.slider[0].stem
    facts = {
        "model": _model_name(settings),
        "size": f"{sampling.width} × {sampling.height} px",
        "sampler": f"{sampler_name(settings, model)}, {sampling.steps} steps, guidance {sampling.guidance:g}",
    }
    if settings.negative:
        facts["negative prompt"] = settings.negative
    if sampling.from_step:
        facts["slider joins"] = f"after step {sampling.from_step}"
    clip = f"ΔCLIP is the increase in CLIP score ({settings.clip})." if settings.clip else ""
    return Page(f"Slider {first}", sampling.width, sampling.height, sections, facts, clip)
