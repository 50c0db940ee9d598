"""Writes a ladder: pictures as the folders of a data set, with captions and a page to look through them."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sliders.config.families import FAMILIES
from sliders.data.captions import FOLDER
from sliders.report.grids import to_picture
from sliders.report.ladder_page import LadderPage, LadderRow, write_ladder_page
from sliders.report.page import multiplier_label
from sliders.sample.infotext import png_info
from sliders.sample.output import PAGE, Output
from sliders.sample.plan import SamplePlan
from sliders.sample.run import planned
from sliders.sample.rungs import Rung, Scene, caption_files, names_of_rows
from sliders.sample.settings import SampleSettings
from sliders.sample.studio import Studio
from sliders.system.files import atomic_write
from sliders.system.installation import how_to_run


@dataclass(frozen=True)
class Ladder:
    """A data set that has been written."""

    page: Path
    rows: int
    rungs: Sequence[Rung]
    command: str  # that trains on it
    config: str  # what the model needs besides, for which the trainer has no flags; as YAML

    @property
    def closing(self) -> str:
        """What the command says at the end."""
        lines = [
            f"page    {self.page}",
            f"ladder  {self.rows} rows in {len(self.rungs)} folders; tick bad ones on the page, and add --leave_out FILE with their names",
            *([f"config  it needs pretrained_model: {self.config}"] if self.config else []),
            f"train   {self.command}",
        ]
        return "\n".join(lines)


def make_ladder(settings: SampleSettings) -> Ladder:
    """Samples everything into `settings.out`. Pictures are written as they are made, the page at the end.

    Raises InputError for wrong settings, and if the GPU has no memory for even one picture.
    """
    with planned(settings) as (plan,):
        return _make(settings, plan)


def _make(settings: SampleSettings, plan: SamplePlan) -> Ladder:
    root, names = settings.out, names_of_rows(plan.groups, settings.seeds)
    studio = Studio(settings, [plan])
    output = Output(settings, plan, studio.model, root)
    captions = caption_files(plan.groups, names, root / FOLDER)
    for folder in [*(root / rung.folder for rung in plan.rungs), *([root / FOLDER] if captions else [])]:
        folder.mkdir(exist_ok=True)
    for path, caption in captions.items():
        with atomic_write(path) as temporary:
            temporary.write_text(f"{caption}\n", encoding="utf-8")
    for own, (scene, pictures) in zip(names, studio.pictures(plan), strict=True):
        _save(output, plan.rungs, own, scene, pictures, settings)
    rows = [
        LadderRow(name, scene.text, [f"{rung.folder}/{name}.png" for rung in plan.rungs])
        for scene, own in zip(plan.groups, names, strict=True)
        for name in own
    ]
    columns = [f"{rung.folder} → {multiplier_label(rung.scale)}" for rung in plan.rungs]
    sampling = plan.sampling
    page = LadderPage(f"Ladder {root.name}", sampling.width, sampling.height, columns, rows, output.facts())
    write_ladder_page(root / PAGE, page)
    config = settings.model.model_dump(exclude_defaults=True, exclude={"name_or_path"}, mode="json")
    return Ladder(
        root / PAGE, len(rows), plan.rungs, training_command(settings, plan), json.dumps(config) if config else ""
    )


def _save(
    output: Output, rungs: Sequence[Rung], names: Sequence[str], scene: Scene, pictures: Tensor, settings: SampleSettings
) -> None:  # fmt: skip
    """pictures: [seeds, rungs, 3, H, W] in [0, 1]. Raises OSError."""
    for name, seed, row in zip(names, settings.seeds, pictures, strict=True):
        for rung, variant, pixels in zip(rungs, scene.variants, row, strict=True):
            text = output.parameters(variant, seed)
            with atomic_write(settings.out / rung.folder / f"{name}.png") as temporary:
                to_picture(pixels).save(temporary, format="PNG", pnginfo=png_info(text))


def training_command(settings: SampleSettings, plan: SamplePlan) -> str:
    """The command that trains a slider on the ladder, with the shipped config, at about the size of the pictures."""
    facts, sampling = FAMILIES[settings.family][0], plan.sampling
    side = round((sampling.width * sampling.height) ** 0.5 / facts.size_multiple) * facts.size_multiple
    name = re.sub(r"[^A-Za-z0-9]+", "_", settings.out.resolve().name).strip("_") or "ladder"
    words = {
        "--config_file": f"trainscripts/imagesliders/data/config{facts.ending}.yaml",
        "--model": settings.model.name_or_path,
        "--name": name,
        "--folder_main": str(settings.out),
        "--folders": ", ".join(rung.folder for rung in plan.rungs),
        "--resolution": str(max(side, facts.size_multiple)),
    }
    scales = ", ".join(multiplier_label(rung.scale) for rung in plan.rungs)
    shown = " ".join(f"{flag} {shlex.quote(value)}" for flag, value in words.items())
    return f"{how_to_run(f'train_lora-scale{facts.ending}.py')} {shown} --scales {scales}"
