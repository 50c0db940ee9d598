"""The command line: its flags, and the many ways in which shells pass lists of numbers or names."""

import argparse
import difflib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from sliders.config.families import DEFAULT_FAMILY, FAMILIES, Facts
from sliders.config.fields import DECIMAL
from sliders.config.migration import ELSEWHERE
from sliders.config.optimizers import OPTIMIZERS
from sliders.config.paths import expanded
from sliders.config.prompts import PromptSet
from sliders.config.schema import TRAINING_METHODS, Config, Incomplete
from sliders.system.errors import InputError

SIZES = ("resolution", "batch_size")  # flags that override a key of every prompt set
LIST_FLAGS = ("--scales", "--folders", "--attributes")
DEFAULT_FOLDERS = "verylow, low, high, veryhigh"
DEFAULT_SCALES = "-2, -1, 1, 2"
DEFAULT_RANGE = "-1, 1"
QUOTES = ("'", '"')
NAME = re.compile(r"""\s*(?:"[^"]*"|'[^']*')\s*(?=,|$)|[^,]+""")  # in a list separated by commas
EXAMPLES = {
    "--folders": "'low, high'",
    "--scales": "0.67, 1, 1.3, 2.0",
    "--multipliers": "0, 1, 2",
    "--shows": "0.5, 1, 1.5",
    "--seeds": "1, 2, 3",
    "--attributes": "'first, second'",
}


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises `InputError` instead of exiting, and takes only whole names of flags."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str):
        message = message.removeprefix("argument ")
        if unknown := message.partition("unrecognized arguments: ")[2].split():
            message = self._what_is_unknown(unknown[0])
        raise InputError(f"{message[0].upper()}{message[1:]} (see --help).")

    def _what_is_unknown(self, word: str) -> str:
        flag = word.partition("=")[0]
        if not flag.startswith("-"):
            return f"{word!r} belongs to no flag: put a value that contains spaces in quotes"
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.7)
        instead = ELSEWHERE.get(flag.lstrip("-").lower().replace("-", "_")) or (near and f"did you mean {near[0]}")
        return f"{flag} is not a known flag: {instead or 'leave it out'}"


def whole(text: str) -> int:
    """A flag's whole number. Python would also read 1_0, and digits of other scripts."""
    if not re.fullmatch(r"[-+]?[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number: write one such as 4")
    return int(text)


def number(text: str) -> float:
    if not (
        DECIMAL.fullmatch(text) or re.fullmatch(r"[-+]?(inf|nan)", text, re.IGNORECASE)
    ):  # the schema refuses these
        decimal = ", with a decimal point" if "," in text else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not a number: write one such as 0.5{decimal}")
    return float(text)


def place(text: str) -> str:
    """A flag's path or hub id, with `~` expanded."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path(text: str) -> Path:
    return Path(place(text))


OVERRIDES = {  # flag → section and key of the YAML, and how argparse reads it
    "name": ("save", "name", {}),
    "rank": ("network", "rank", {"type": whole}),
    "alpha": ("network", "alpha", {"type": number}),
    "training_method": ("network", "training_method", {"choices": TRAINING_METHODS, "metavar": "METHOD"}),
    "model": ("pretrained_model", "name_or_path", {"type": place, "metavar": "NAME_OR_PATH"}),
    "iterations": ("train", "iterations", {"type": whole}),
    "lr": ("train", "lr", {"type": number}),
    "optimizer": ("train", "optimizer", {"metavar": "NAME"}),
    "seed": ("train", "seed", {"type": whole}),
    "save_path": ("save", "path", {"type": place, "metavar": "DIR"}),
    "per_steps": ("save", "per_steps", {"type": whole}),
}


def build_parser(family: str = DEFAULT_FAMILY) -> Parser:
    """Of the image trainer."""
    facts = FAMILIES[family][0]
    script, about = f"train_lora-scale{facts.ending}.py", "from folders of images, one folder per multiplier"
    parser, add = _parser(
        script, about, "imagesliders", facts, "pairs of images", "default: each image's caption, or empty prompts"
    )
    add("--folder_main", required=True, type=path, metavar="DIR",
        help="the data set: the folder that contains the --folders")  # fmt: skip
    add("--folders", metavar="A, B, …",
        help="one subfolder per scale, with the same file names in each; a name that contains a comma stands in double quotes "
        f"(default: {DEFAULT_FOLDERS})")  # fmt: skip
    add("--scales", metavar="X, Y, …",
        help=f"the multiplier at which the slider should produce each folder's images (default: {DEFAULT_SCALES})")  # fmt: skip
    add_choice_of_names(add)
    add("--stylecheck", metavar="A-B",
        help="train one slider for each of the data sets DIR+A … DIR+(B-1), named after its folder (default: only DIR itself)")  # fmt: skip
    return parser


def add_choice_of_names(add: Callable[..., object]) -> None:
    """The flags that choose among the names of a data set's images."""
    add("--leave_out", type=path, metavar="FILE",
        help="do without the images of these names: a text file with one name in each line (default: use all)")  # fmt: skip
    add("--incomplete", choices=get_args(Incomplete), default="refuse",
        help="what to do with names that some folders lack (default: refuse the data set)")  # fmt: skip


def build_text_parser(family: str = DEFAULT_FAMILY) -> Parser:
    """Of the text trainer."""
    facts = FAMILIES[family][0]
    script = f"train_lora{facts.ending.replace('-', '_')}.py"
    about, prompts = "from prompts alone, without images", "default: that of the YAML, where it is required"
    parser, add = _parser(script, about, "textsliders", facts, "pairs of pictures", prompts)
    add("--scales", metavar="X, Y, …",
        help=f"multipliers to train: all between the lowest and the highest (default: {DEFAULT_RANGE})")  # fmt: skip
    return parser


def _parser(
    script: str, about: str, folder: str, facts: Facts, pairs: str, prompts: str
) -> tuple[Parser, Callable[..., object]]:
    """With the flags that both trainers have, and the method that adds a flag for the data.

    folder: the script's. pairs: of what. prompts: what is trained without a prompts file. The default `examples` makes of
    "config" and "prompts" the files to start from.
    """
    parser = Parser(
        prog=script,
        description=f"Train a concept slider {about}.",
        epilog="A flag overrides the value in the YAML; the defaults are those of keys that are in neither.",
    )
    parser.set_defaults(examples=f"trainscripts/{folder}/data/{{}}{facts.ending}.yaml")
    parser.add_argument("--config_file", required=True, type=path, metavar="YAML",
        help=f"the experiment; start from data/config{facts.ending}.yaml")  # fmt: skip
    data = parser.add_argument_group("data")
    add = parser.add_argument_group("overrides of the YAML").add_argument
    add("--attributes", default="", metavar="A, B, …",
        help="repeat each prompt set once per attribute, with the attribute in front of its prompts (default: none)")  # fmt: skip
    for flag, (section, key, options) in OVERRIDES.items():
        usual = facts.example if flag == "model" else default_of(section, key)
        known = f": {', '.join(OPTIMIZERS)}" if flag == "optimizer" else ""
        add(f"--{flag}", **options, help=f"{section}.{key} (default: {usual}){known}")
    add("--prompts_file", type=place, metavar="YAML", help=f"prompts_file, from the working directory ({prompts})")
    usual = {key: f"(default: its own, or {PromptSet.model_fields[key].default})" for key in SIZES}
    add("--resolution", type=whole, metavar="PX", help=f"resolution of every prompt set {usual['resolution']}")
    add("--batch_size", type=whole, metavar="PAIRS",
        help=f"batch_size of every prompt set: {pairs} {usual['batch_size']}")  # fmt: skip
    add = parser.add_argument_group("the run").add_argument
    add("--device", default="0", metavar="N", help="CUDA index (default: 0), or cpu, or mps")
    add("--dry_run", action="store_true",
        help="check everything that needs no weights, print the plan and exit (default: train)")  # fmt: skip
    add("--resume", action="store_true",
        help="continue from the newest checkpoint of this run, if there is one (default: refuse if there is)")  # fmt: skip
    add("--overwrite", action="store_true",
        help="replace an earlier run of the same name; with --resume, only one that has no checkpoint (default: refuse)")  # fmt: skip
    return parser, data.add_argument


def default_of(section: str, key: str) -> str:
    value = Config.model_fields[section].annotation.model_fields[key].default
    return f"./{value}" if isinstance(value, Path) else f"{value}"


def join_list_flags(argv: list[str], list_flags: Sequence[str] = LIST_FLAGS) -> list[str]:
    """`--scales 0.67, 1, 1.3` → `--scales=0.67, 1, 1.3`: all words up to the next `--flag` become one value.

    argparse itself would take `-2,` for a flag. If any word contains a comma, commas separate the values, which may then
    contain spaces; otherwise each word is a value, because PowerShell splits unquoted lists. Raises InputError for a list
    flag without a value.
    """
    joined, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in list_flags:
            joined.append(word)
            continue
        words = [value] if equals else []
        while rest and not rest[0].startswith("--"):
            words.append(rest.pop(0))
        if not words:
            raise InputError(f"{flag} was given without a value: write for example {flag} {EXAMPLES[flag]}.")
        joined.append(f"{flag}={(' ' if any(',' in w for w in words) else ', ').join(words)}")
    return joined


def parse_names(text: str) -> tuple[str, ...]:
    """`"a, b"` → `("a", "b")`. A name may contain spaces, and in quotes also commas.

    A pair of quotes around the list or around a name is removed, because cmd.exe passes single quotes on.
    """
    text = text.strip()
    if len(text) > 1 and text[0] in QUOTES and text.find(text[0], 1) == len(text) - 1:
        return parse_names(text[1:-1])
    names = [_unquoted(match[0].strip()) for match in NAME.finditer(text)]
    if len(names) > 1 and names[0][:1] in QUOTES and names[-1][-1:] == names[0][:1]:
        names[0], names[-1] = names[0][1:], names[-1][:-1]
    return tuple(name.strip() for name in names if name.strip())


def _parse_folders(text: str) -> tuple[str, ...]:
    """Names below `--folder_main`, or paths."""
    try:
        return tuple(expanded(name) if name.startswith(("~/", "~\\")) else name for name in parse_names(text))
    except ValueError as error:
        raise InputError(f"--folders: {error}.") from error


def _unquoted(name: str) -> str:
    return name[1:-1] if len(name) > 1 and name[0] in QUOTES and name[-1] == name[0] else name


def parse_scales(text: str, flag: str = "--scales") -> tuple[float, ...]:
    """Numbers separated by commas or spaces, with `-` or `−` as the minus sign. Raises InputError unless all are finite."""
    scales = []
    for word in re.split(r"[,\s]+", text.replace("\N{MINUS SIGN}", "-").strip(", \t\n")):
        number = word.strip("'\"")  # cmd.exe passes single quotes on
        try:
            scale = float(number.replace("_", "x"))  # Python would read 1_0 as 10
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            raise InputError(f"{flag}: {word!r} is not a finite number: write for example {flag} {EXAMPLES[flag]}.")
        scales.append(scale)
    return tuple(scales)


def parse_stylecheck(text: str) -> range:
    """`"A-B"` → `range(A, B)`. Raises InputError unless A is less than B."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*-\s*(\d{1,6})\s*", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(
            f"--stylecheck: {text!r} is not a range A-B with A less than B: write for example --stylecheck 0-3."
        )
    return range(int(match[1]), int(match[2]))


def parse_device(text: str) -> str:
    """Returns `text` if it is a CUDA index, `cpu` or `mps`. Raises InputError otherwise."""
    if text in ("cpu", "mps") or re.fullmatch(r"\d{1,3}", text):
        return text
    raise InputError(f"--device: {text!r} is not a CUDA index, cpu or mps: write for example --device 0.")


def parse_flags(argv: list[str], parser: Parser) -> argparse.Namespace:
    """Of one of the parsers above. `folders`, `scales` and `attributes` become tuples, `stylecheck` a range.

    Those that were not given, except `attributes`, are None. Raises InputError.
    """
    flags = parser.parse_args(join_list_flags(argv))
    for name, parse in (("folders", _parse_folders), ("scales", parse_scales), ("stylecheck", parse_stylecheck)):
        if getattr(flags, name, None) is not None:
            setattr(flags, name, parse(getattr(flags, name)))
    flags.attributes = parse_names(flags.attributes)
    flags.device = parse_device(flags.device)
    return flags


def match_folders_and_scales(folders: tuple[str, ...] | None, scales: tuple[float, ...] | None):
    """Pairs folder *i* with scale *i*; None: not given. Returns both in ascending order of scale. Raises InputError."""
    if (folders is None) != (scales is None):
        given, other = ("--scales", "--folders") if folders is None else ("--folders", "--scales")
        listed = folders or [f"{s:g}" for s in scales or ()]
        usual = DEFAULT_FOLDERS if folders is None else DEFAULT_SCALES
        if len(listed) != len(usual.split(",")):
            raise InputError(
                f"{given} lists {len(listed)} ({', '.join(listed)}), but {other} was not given, and its default has "
                f"{len(usual.split(','))} ({usual}): add {other}, such as {other} {EXAMPLES[other]}, with one for each."
            )
    folders = parse_names(DEFAULT_FOLDERS) if folders is None else folders
    scales = parse_scales(DEFAULT_SCALES) if scales is None else scales
    if len(folders) != len(scales):
        raise InputError(
            f"--folders lists {len(folders)} ({', '.join(folders)}) but --scales lists {len(scales)} "
            f"({', '.join(f'{s:g}' for s in scales)}): give one scale per folder, with decimal points, not commas, and "
            "put a name that contains a comma in double quotes."
        )
    if len(folders) < 2:
        raise InputError(f"--folders: {', '.join(folders) or 'nothing'} is not enough: give two or more folders.")
    for what, values in (("--folders", folders), ("--scales", scales)):
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise InputError(f"{what}: {twice[0]} is given twice: give each folder a scale of its own.")
    pairs = sorted(zip(scales, folders, strict=True))
    return tuple(f for _, f in pairs), tuple(s for s, _ in pairs)


def range_of(scales: tuple[float, ...] | None) -> tuple[float, ...]:
    """The multipliers of a text slider, ascending; None: not given. Raises InputError."""
    scales = tuple(sorted(set(scales or parse_scales(DEFAULT_RANGE))))
    if len(scales) < 2:
        raise InputError(f"--scales: {scales[0]:g} alone is no range: give the lowest and the highest, such as -1, 1.")
    return scales
