"""The pictures of a sampling run, with their parameters, and grids of them."""

from pathlib import Path

from torch import Tensor

from sliders.config.schema import SAMPLERS
from sliders.models.base import Model
from sliders.report.grids import labelled_grid, to_picture
from sliders.report.page import multiplier_label
from sliders.sample.infotext import infotext, png_info
from sliders.sample.plan import SamplePlan
from sliders.sample.settings import SampleSettings
from sliders.sample.templates import Group, Variant
from sliders.system.files import atomic_write

PAGE = "index.html"  # the page beside them


class Output:
    """Writes the pictures of one slider into `folder`."""

    def __init__(self, settings: SampleSettings, plan: SamplePlan, model: Model, folder: Path):
        self._settings, self._plan, self._model, self._folder = settings, plan, model, folder
        self._groups = 0
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, group: Group, pictures: Tensor) -> None:
        """Pictures [seeds, multipliers, 3, H, W] in [0, 1] of the next group, one by one and as a grid. Raises OSError."""
        self._groups += 1
        seeds, labels = self._settings.seeds, [multiplier_label(m) for m in group.multipliers]
        for seed, row in zip(seeds, pictures, strict=True):
            for multiplier, label, pixels in zip(group.multipliers, labels, row, strict=True):
                text = self.parameters(group.at(multiplier), seed)
                path = self._folder / f"{self._groups:02d}_seed{seed}_x{label}.png"
                with atomic_write(path) as temporary:
                    to_picture(pixels).save(temporary, format="PNG", pnginfo=png_info(text))
        grid = labelled_grid(pictures, [f"seed {seed}" for seed in seeds], labels)
        with atomic_write(self._folder / f"{self._groups:02d}_grid.png") as temporary:
            grid.save(temporary, format="PNG")

    def parameters(self, variant: Variant, seed: int) -> str:
        """The infotext of one picture."""
        settings, plan, model = self._settings, self._plan, self._model
        sampling = plan.sampling
        fields: dict[str, str | int | float] = {
            "Steps": sampling.steps,
            "Sampler": sampler_name(settings, model),
            "CFG scale": 1.0 if model.distilled else sampling.guidance,
            "Seed": seed,
            "Size": f"{sampling.width}x{sampling.height}",
            "Model": _model_name(settings),
        }
        if settings.model.clip_skip is not None:
            fields["Clip skip"] = settings.model.clip_skip + model.facts.webui_clip_skip
        if sampling.from_step:
            fields[f"{self._joining} from step"] = sampling.from_step
        return infotext(
            variant, settings.negative, fields, {name: plan.hashes[name] for name, _ in variant.multipliers}
        )

    def facts(self) -> dict[str, str]:
        """How the pictures were made, for the page."""
        settings, sampling = self._settings, self._plan.sampling
        facts = {
            "model": _model_name(settings),
            "size": f"{sampling.width} × {sampling.height} px",
            "sampler": f"{sampler_name(settings, self._model)}, {sampling.steps} steps, guidance {sampling.guidance:g}",
        }
        if settings.negative:
            facts["negative prompt"] = settings.negative
        if sampling.from_step:
            facts[f"{self._joining.lower()} joins"] = f"after step {sampling.from_step}"
        return facts

    @property
    def _joining(self) -> str:
        """What joins after `from_step`."""
        return "Slider" if self._settings.slider else "Level"


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
