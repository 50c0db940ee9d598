"""Turns the sample command's flags into one frozen settings object. Does not import torch, so that errors appear at once."""

from argparse import BooleanOptionalAction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sliders.config.families import DEFAULT_FAMILY, FAMILIES, SD2, Facts
from sliders.config.fields import Number, SavePrecision, Section, Whole
from sliders.config.flags import (
    Parser,
    add_choice_of_names,
    join_list_flags,
    number,
    parse_device,
    parse_names,
    parse_scales,
    path,
    place,
    whole,
)
from sliders.config.prompts import Prompt
from sliders.config.schema import SAMPLERS, Incomplete, PretrainedModel
from sliders.config.settings import validated
from sliders.system.errors import InputError

LIST_FLAGS = ("--seeds", "--multipliers", "--shows")
DEFAULT_SEEDS = "1, 2, 3"
COMPARE = "compare_sliders.py"
MAX_PICTURES = 4096
PLACES = {  # {a place in the checks that training shares: the flag here}
    "pretrained_model.name_or_path": "--model",
    "pretrained_model.config": "--model_config",
    "pretrained_model.v_pred": "--v_pred",
    "pretrained_model.v2": "--v2",
    "pretrained_model.clip_skip": "--clip_skip",
    "--folder_main": "--card",
    "--folders": "--card",
}
Pixels = Annotated[Whole, Field(ge=64, le=4096)]


class SampleSettings(Section):
    """All settings of one run of the sample command."""

    family: str  # a name in models.FAMILIES, chosen by the command
    model: PretrainedModel
    slider: tuple[Path, ...]  # none: a ladder of a prompt's levels
    lora_dir: Path | None
    prompt: tuple[Prompt, ...]
    neutral: Prompt  # of a ladder of levels: what its captions have in their place
    negative: Prompt
    wildcard_dir: Path | None
    multipliers: tuple[Number, ...] | None  # for prompts that do not name the slider; None: those it was trained at
    shows: tuple[Number, ...] | None  # instead, for a ladder: what its card says that it shows
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...]
    width: Pixels | None  # px; None: the size the slider was trained at
    height: Pixels | None
    steps: Annotated[Whole, Field(ge=1, le=1000)] | None  # None: the model's usual number
    guidance: Annotated[Number, Field(ge=1, le=100)] | None  # the same
    sampler: Literal[tuple(SAMPLERS)] | None  # None: the model's own scheduler
    from_step: Annotated[Whole, Field(ge=0)]
    batch_size: Annotated[Whole, Field(ge=1)] | None  # pictures; None: what the GPU's memory allows
    out: Path
    ladder: bool  # whether `out` becomes a data set
    overwrite: bool
    device: str
    precision: SavePrecision | None  # None: float16 on a GPU, float32 elsewhere
    clip: str | None
    clip_text: str | None
    lpips: bool
    card: Path | None  # folder_main of the training; None: no report card
    leave_out: Path | None  # of the training, as in schema.Data
    incomplete: Incomplete

    @model_validator(mode="after")
    def _joins_in_time(self) -> "SampleSettings":
        if self.steps is not None and self.from_step >= self.steps:
            raise ValueError(f"--from_step: {self.from_step} is not below --steps ({self.steps}): lower it")
        return self


def script_name(family: str) -> str:
    return f"sample_slider{FAMILIES[family][0].ending}.py"


def build_parser(family: str) -> Parser:
    parser = Parser(
        prog=script_name(family),
        description="Show what a slider does: pictures at several multipliers with fixed seeds, on one page to scrub through.",
        epilog="A prompt that does not name the slider is shown at the multipliers the slider was trained at.",
    )
    parser.add_argument("--slider", default=[], nargs="+", type=path, metavar="FILE",
        help="sliders, or LoRAs of other programs: <slider:X> is the first at multiplier X, <lora:NAME:X> is any of them "
        "(default: none, which only --ladder allows)")  # fmt: skip
    _add_flags(parser, family, "NAME_samples beside the slider")
    add = parser.add_argument_group("training data").add_argument
    add("--ladder", type=path, metavar="DIR",
        help="write the pictures as a data set to train on, with a folder for each of --multipliers, or, without --slider, for each "
        "alternative in the first braces of the prompts, such as 'a {young|old} man' (default: do not)")  # fmt: skip
    add("--shows", metavar="X, Y, …",
        help="instead of --multipliers: those at which the slider shows these scales by its report card (default: none)")  # fmt: skip
    add("--neutral", default="", metavar="TEXT",
        help="what captions have in the place of those alternatives, and pictures show before --from_step (default: nothing)")  # fmt: skip
    add = parser.add_argument_group("learned measures of change").add_argument
    add("--clip", type=place, metavar="MODEL",
        help="plot the increase in CLIP score, with a model such as openai/clip-vit-large-patch14 (default: none)")  # fmt: skip
    add("--clip_text", metavar="TEXT", help="the text that --clip compares with (default: each picture's prompt)")
    add("--lpips", action="store_true",
        help="plot the LPIPS distance to multiplier 0; needs the package lpips (default: do not)")  # fmt: skip
    return parser


def build_comparison_parser(family: str) -> Parser:
    parser = Parser(
        prog=COMPARE,
        description="Show several sliders side by side: the same prompts, seeds and multipliers, on one page.",
        epilog="In prompts, <slider:X> is each of the sliders in turn.",
    )
    parser.add_argument("slider", nargs="+", type=path, metavar="SLIDER", help="files of at least two sliders or LoRAs")
    parser.add_argument("--family", choices=FAMILIES, default=DEFAULT_FAMILY,
        help="the kind of model that they are for (default: sdxl)")  # fmt: skip
    _add_flags(parser, family, "comparison beside the first slider")
    return parser


def _add_flags(parser: Parser, family: str, out: str) -> None:
    """All but those that name the sliders. out: the default of --out, in words."""
    _add_model(parser, family)
    _add_what(parser)
    _add_how(parser, FAMILIES[family][0])
    add = parser.add_argument_group("the run").add_argument
    add("--out", type=path, metavar="DIR", help=f"folder for the pictures and the page (default: {out})")
    add("--overwrite", action="store_true", help="write into a folder that already contains files (default: refuse)")
    add("--device", default="0", metavar="N", help="CUDA index (default: 0), or cpu, or mps")
    add(
        "--precision",
        help=f"float16, bfloat16 or float32 (default: {FAMILIES[family][0].half} on a GPU, float32 elsewhere)",
    )
    add("--batch_size", type=whole, metavar="N",
        help="pictures per batch (default: 4 at 1024 px on 24 GB); halved until they fit")  # fmt: skip
    add = parser.add_argument_group("report card").add_argument
    add("--card", type=path, metavar="DIR",
        help="measure it against the images it was trained on: DIR is the --folder_main of its training (default: do not)")  # fmt: skip
    add_choice_of_names(add)


def _add_model(parser: Parser, family: str) -> None:
    add = parser.add_argument
    add("--model", required=True, type=place, metavar="NAME_OR_PATH", help="hub id, folder, .safetensors or .ckpt")
    add("--model_config", type=place, metavar="DIR",
        help="diffusers folder with the JSON files of a single-file model, for use without a network (default: the hub's)")  # fmt: skip
    add("--v_pred", action=BooleanOptionalAction, default=None,
        help="for a model whose files do not say that it predicts v, or, with --no-v_pred, noise (default: what they say)")  # fmt: skip
    if SD2 in FAMILIES[family]:
        add("--v2", action="store_true", help="the model is a Stable Diffusion 2 (default: 1)")
    usual = FAMILIES[family][0].webui_clip_skip
    add("--clip_skip", type=whole, metavar="N", help=f"web UIs' Clip skip minus {usual} (default: Clip skip {usual})")


def _add_what(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--lora_dir",
        type=path,
        metavar="DIR",
        help="folder of more sliders and LoRAs for <lora:NAME:X> (default: none)",
    )
    add("--prompt", required=True, nargs="+", metavar="TEMPLATE",
        help="prompts in Dynamic Prompts syntax, such as 'a robe {<slider:0>|<slider:0.8>|<slider:2.7>}'")  # fmt: skip
    add("--negative", default="", metavar="TEXT", help="negative prompt (default: empty)")
    add("--wildcard_dir", type=path, metavar="DIR",
        help="folder of files for Dynamic Prompts' __wildcards__ (default: none)")  # fmt: skip
    add("--multipliers", metavar="X, Y, …",
        help="for prompts that do not name the slider (default: the trained ones), or of a ladder's levels, in their order")  # fmt: skip
    add("--seeds", default=DEFAULT_SEEDS, metavar="N, M, …",
        help=f"one row of pictures per seed (default: {DEFAULT_SEEDS})")  # fmt: skip


def _add_how(parser: Parser, facts: Facts) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add("--width", type=whole, metavar="PX", help="default: the size the slider was trained at")
    add("--height", type=whole, metavar="PX", help="default: the same")
    usual, fast = facts.pictures, facts.distilled
    few, none = (
        (f", step-distilled models: {fast.steps}", f", step-distilled models: {fast.guidance:g}") if fast else ("", "")
    )
    add("--steps", type=whole, metavar="N", help=f"default: {usual.steps}{few}")
    add("--guidance", type=number, metavar="X",
        help=f"classifier-free guidance (default: {usual.guidance:g}{none}; 1: off)")  # fmt: skip
    add("--sampler", metavar="NAME", help=f"{', '.join(SAMPLERS)} (default: the model's own)")
    add("--from_step", type=whole, default=0, metavar="N",
        help="run N steps before the slider joins, or in a ladder the level, which keeps the picture's layout (default: 0)")  # fmt: skip


def load_sample_settings(argv: list[str], family: str = DEFAULT_FAMILY) -> SampleSettings:
    """Parses the command line of the sample command. Raises InputError with one message per mistake."""
    flags = vars(build_parser(family).parse_args(join_list_flags(argv, LIST_FLAGS)))
    _check_ladder(flags)
    flags["ladder"], folder = flags["ladder"] is not None, flags["ladder"]
    if not (flags["slider"] or folder):
        raise InputError("--slider: is missing: name the slider's file; only --ladder can do without.")
    if flags["shows"] is not None:
        flags["shows"] = parse_scales(flags["shows"], "--shows")
    return _settings(flags, family, script_name(family), folder or _beside(flags["slider"][0]))


def _beside(slider: Path) -> Path:
    return slider.with_name(f"{slider.stem}_samples")


def _check_ladder(flags: dict) -> None:
    """Raises InputError for flags that mean nothing together with --ladder, or without it."""
    if flags["ladder"] is None:
        problems = [f"--{name}: is for --ladder, which is not given" for name in ("shows", "neutral") if flags[name]]
    else:
        refused = ("out", "card", "clip", "clip_text", "lpips")
        problems = [f"--{name}: has no effect with --ladder" for name in refused if flags[name]]
        if flags["overwrite"]:
            problems.append("--overwrite: would mix the pictures of two ladders in one data set")
    if flags["shows"] is not None and flags["multipliers"] is not None:
        problems.append("--shows: replaces --multipliers, and both are given")
    if problems:
        raise InputError("\n".join(f"{problem}: leave it out." for problem in problems))


def load_comparison_settings(argv: list[str]) -> SampleSettings:
    """Parses the command line of the compare command. Raises InputError with one message per mistake."""
    chosen = Parser(add_help=False)
    chosen.add_argument("--family", choices=FAMILIES, default=DEFAULT_FAMILY)
    family = chosen.parse_known_args(argv)[0].family
    flags = vars(build_comparison_parser(family).parse_args(join_list_flags(argv, LIST_FLAGS)))
    if len(flags["slider"]) < 2:
        raise InputError(f"SLIDER: only {flags['slider'][0]} is given: name at least two sliders to compare.")
    flags |= {"clip": None, "clip_text": None, "lpips": False, "ladder": False, "shows": None, "neutral": ""}
    return _settings(flags, family, COMPARE, flags["slider"][0].with_name("comparison"))


def _settings(flags: dict, family: str, script: str, out: Path) -> SampleSettings:
    for name, given in (("leave_out", flags["leave_out"]), ("incomplete", flags["incomplete"] != "refuse")):
        if given and flags["card"] is None:
            raise InputError(
                f"--{name}: is about the folders of --card, which is not given: add --card, or leave it out."
            )
    flags["family"] = family
    model = {"v_pred": flags.pop("v_pred"), "clip_skip": flags.pop("clip_skip"), "config": flags.pop("model_config")}
    model["v2"] = flags.pop("v2", False)
    flags["model"] = {"name_or_path": flags["model"], **model}
    flags["seeds"] = _parse_seeds(flags["seeds"])
    if flags["multipliers"] is not None:
        flags["multipliers"] = parse_scales(flags["multipliers"], "--multipliers")
    flags["device"] = parse_device(flags["device"])
    flags["out"] = flags["out"] or out
    places = {name: f"--{name}" for name in SampleSettings.model_fields}
    places |= {place.replace("pretrained_model", "model"): flag for place, flag in PLACES.items()} | {"": script}
    return validated(SampleSettings, flags, script, places)


def _parse_seeds(text: str) -> tuple[int, ...]:
    seeds = []
    for word in parse_names(text.replace(" ", ",")):
        if not word.isdecimal() or int(word) >= 2**63:
            raise InputError(
                f"--seeds: {word!r} is not a whole number from 0 to 2^63 − 1: write for example --seeds {DEFAULT_SEEDS}."
            )
        seeds.append(int(word))
    if not seeds:
        raise InputError(f"--seeds: {text!r} contains no seed: write for example --seeds {DEFAULT_SEEDS}.")
    return tuple(dict.fromkeys(seeds))
