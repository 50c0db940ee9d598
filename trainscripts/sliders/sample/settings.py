"""The sample command's flags → one frozen object. Imports no torch, so that a mistake shows at once."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sliders.config.fields import Number, SavePrecision, Section, Whole
from sliders.config.flags import Parser, join_list_flags, parse_device, parse_names, parse_scales
from sliders.config.schema import SAMPLERS, PretrainedModel
from sliders.config.settings import validated
from sliders.system.errors import InputError, either

LIST_FLAGS = ("--seeds", "--multipliers")
DEFAULT_SEEDS = "1, 2, 3"
MAX_PICTURES = 4096
Pixels = Annotated[Whole, Field(ge=64, le=4096)]


class SampleSettings(Section):
    """Everything that one run of sample_slider-xl.py is told."""

    family: str = "sdxl"  # a name in models.FAMILIES
    model: PretrainedModel
    slider: tuple[Path, ...]
    lora_dir: Path | None
    prompt: tuple[str, ...]
    negative: str
    wildcard_dir: Path | None
    multipliers: tuple[Number, ...] | None  # for prompts that do not name the slider; none: those it was trained at
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...]
    width: Pixels | None  # none: what the slider was trained at
    height: Pixels | None
    steps: Annotated[Whole, Field(ge=1, le=1000)]
    guidance: Annotated[Number, Field(ge=1, le=100)]
    sampler: Literal[tuple(SAMPLERS)] | None
    from_step: Annotated[Whole, Field(ge=0)]
    batch_size: Annotated[Whole, Field(ge=1)] | None
    out: Path
    overwrite: bool
    device: str
    precision: SavePrecision | None  # none: float16 on a GPU, float32 elsewhere
    clip: str | None
    clip_text: str | None
    lpips: bool

    @field_validator("sampler", mode="before")
    @classmethod
    def _is_known(cls, sampler: str | None) -> str | None:
        if sampler is not None and sampler not in SAMPLERS:
            raise ValueError(f"{sampler!r} is not known: use {either(SAMPLERS)}")
        return sampler

    @model_validator(mode="after")
    def _joins_in_time(self) -> "SampleSettings":
        if self.from_step >= self.steps:
            raise ValueError(f"--from_step: {self.from_step} leaves the slider none of {self.steps} steps: lower it")
        return self


def build_parser() -> Parser:
    parser = Parser(
        prog="sample_slider-xl.py",
        description="Show what a slider does: fixed seeds, several multipliers, one page to scrub through them.",
        epilog="A prompt that does not name the slider is shown at the multipliers the slider was trained at.",
        allow_abbrev=False,
    )
    _add_what(parser)
    _add_how(parser)
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for pictures and page (default: beside the slider)"
    )
    run.add_argument("--overwrite", action="store_true", help="write into a folder that holds files already")
    run.add_argument("--device", default="0", metavar="N", help="CUDA index (default: 0), or cpu, or mps")
    run.add_argument("--precision", help="float16 (default on a GPU), bfloat16 or float32 (default elsewhere)")
    run.add_argument("--batch_size", type=int, metavar="N",
                     help="pictures at once (default: 4 of 1024 px on 24 GB); halved while they do not fit")  # fmt: skip
    judge = parser.add_argument_group("more measures of change, by models from your hub cache")
    judge.add_argument(
        "--clip", metavar="MODEL", help="CLIP score's rise over multiplier 0, such as openai/clip-vit-large-patch14"
    )
    judge.add_argument("--clip_text", metavar="TEXT", help="what --clip compares with (default: each picture's prompt)")
    judge.add_argument("--lpips", action="store_true", help="LPIPS to multiplier 0; needs the package lpips")
    return parser


def _add_what(parser: Parser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="NAME_OR_PATH", help="hub id, folder, .safetensors or .ckpt")
    add("--model_config", metavar="DIR", help="for a single file without network: diffusers folder with its JSON files")
    add("--v_pred", action="store_true", default=None, help="where a v-prediction model does not say so itself")
    add("--clip_skip", type=int, metavar="N", help="1 is what a web UI calls Clip skip 3; its usual 2 needs none")
    add("--slider", required=True, nargs="+", type=Path, metavar="FILE",
        help="the slider; <slider:X> is the first, the others are <lora:NAME:X>")  # fmt: skip
    add("--lora_dir", type=Path, metavar="DIR", help="folder whose files <lora:NAME:X> may name too")
    add("--prompt", required=True, nargs="+", metavar="TEMPLATE",
        help="prompts in Dynamic Prompts' syntax, such as 'a robe {<slider:0>|<slider:0.8>|<slider:2.7>}'")  # fmt: skip
    add("--negative", default="", metavar="TEXT", help="negative prompt")
    add("--wildcard_dir", type=Path, metavar="DIR", help="Dynamic Prompts' folder of __wildcard__ files")
    add("--multipliers", metavar="X, Y, …", help="for prompts that do not name the slider (default: the trained ones)")
    add(
        "--seeds", default=DEFAULT_SEEDS, metavar="N, M, …", help=f"one row of pictures each (default: {DEFAULT_SEEDS})"
    )


def _add_how(parser: Parser) -> None:
    how = parser.add_argument_group("sampling")
    add = how.add_argument
    add("--width", type=int, metavar="PX", help="default: what the slider was trained at")
    add("--height", type=int, metavar="PX")
    add("--steps", type=int, default=30, metavar="N", help="default: 30")
    add("--guidance", type=float, default=5.0, metavar="X", help="classifier-free guidance (default: 5); 1: none")
    add("--sampler", metavar="NAME", help=f"{', '.join(SAMPLERS)} (default: the model's own)")
    add("--from_step", type=int, default=0, metavar="N",
        help="steps without the slider first: what they lay out stays (default: 0)")  # fmt: skip


def load_sample_settings(argv: list[str]) -> SampleSettings:
    """Command line → settings. Raises InputError with a sentence for each mistake."""
    flags = vars(build_parser().parse_args(join_list_flags(argv, LIST_FLAGS)))
    said = {"v_pred": flags.pop("v_pred"), "clip_skip": flags.pop("clip_skip"), "config": flags.pop("model_config")}
    flags["model"] = {"name_or_path": flags["model"], **said}
    flags["seeds"] = _parse_seeds(flags["seeds"])
    if flags["multipliers"] is not None:
        flags["multipliers"] = parse_scales(flags["multipliers"], "--multipliers")
    flags["device"] = parse_device(flags["device"])
    first = flags["slider"][0]
    flags["out"] = flags["out"] or first.with_name(f"{first.stem}_samples")
    places = {name: f"--{name}" for name in SampleSettings.model_fields}
    places |= {"model.name_or_path": "--model", "model.clip_skip": "--clip_skip", "": "sample_slider-xl.py"}
    return validated(SampleSettings, flags, "sample_slider-xl.py", places)


def _parse_seeds(text: str) -> tuple[int, ...]:
    seeds = []
    for word in parse_names(text.replace(" ", ",")):
        if not word.isdecimal() or int(word) >= 2**63:
            raise InputError(
                f"--seeds: {word!r} is no whole number from 0 on: write for example --seeds {DEFAULT_SEEDS}."
            )
        seeds.append(int(word))
    if not seeds:
        raise InputError(f"--seeds: {text!r} holds no seed: write for example --seeds {DEFAULT_SEEDS}.")
    return tuple(dict.fromkeys(seeds))
