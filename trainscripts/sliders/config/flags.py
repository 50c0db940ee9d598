"""The command line: its flags, and the many ways in which shells pass lists of numbers or names."""

import argparse
import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from sliders.config.families import DEFAULT_FAMILY, FAMILIES
from sliders.config.fields import DECIMAL
from sliders.config.migration import ELSEWHERE
from sliders.config.optimizers import OPTIMIZERS
from sliders.config.paths import expanded
from sliders.config.prompts import PromptSet
from sliders.config.schema import TRAINING_METHODS, Network, Save, Train
from sliders.system.errors import InputError

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
    "--seeds": "1, 2, 3",
}


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises `InputError` instead of exiting."""

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
    if not DECIMAL.fullmatch(text) and not re.fullmatch(
        r"[-+]?(inf|nan)", text, re.IGNORECASE
    ):  # refused by the schema
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


def default_of(section: type[BaseModel], key: str) -> str:
    """`train.lr (default: 0.0001)`, for a flag that overrides a key of the YAML."""
    value = section.model_fields[key].default
    value = f"./{value}" if isinstance(value, Path) else value
    return f"{section.__name__.lower()}.{key} (default: {value})"


def build_parser(family: str = DEFAULT_FAMILY) -> argparse.ArgumentParser:
    """Of the image trainer."""
    parser = _parser(
        f"train_lora-scale{FAMILIES[family][0].ending}.py",
        "Train a concept slider from folders of images, one folder per multiplier.",
        folder="imagesliders",
        family=family,
    )
    add = parser.add_argument_group("data").add_argument
    add("--folder_main", required=True, type=path, metavar="DIR",
        help="the data set: the folder that contains the --folders")  # fmt: skip
    add("--folders", metavar="A, B, …",
        help="one subfolder per scale, with the same file names in each; a name that contains a comma stands in double quotes "
        f"(default: {DEFAULT_FOLDERS})")  # fmt: skip
    add("--scales", metavar="X, Y, …",
        help=f"the multiplier at which the slider should produce each folder's images (default: {DEFAULT_SCALES})")  # fmt: skip
    add("--stylecheck", metavar="A-B",
        help="train one slider for each of the data sets DIR+A … DIR+(B-1), named after its folder (default: only DIR itself)")  # fmt: skip
    _add_common_flags(
        parser, FAMILIES[family][0].example, "pairs of images", "default: each image's caption, or empty prompts"
    )
    return parser


def build_text_parser(family: str = DEFAULT_FAMILY) -> argparse.ArgumentParser:
    """Of the text trainer."""
    parser = _parser(
        f"train_lora{FAMILIES[family][0].ending.replace('-', '_')}.py",
        "Train a concept slider from prompts alone, without images.",
        folder="textsliders",
        family=family,
    )
    add = parser.add_argument_group("data").add_argument
    add("--scales", metavar="X, Y, …",
        help=f"multipliers to train: all between the lowest and the highest (default: {DEFAULT_RANGE})")  # fmt: skip
    _add_common_flags(
        parser,
        FAMILIES[family][0].example,
        "pairs of pictures",
        "default: that of the YAML, where it is required",
    )
    return parser


def _parser(script: str, description: str, folder: str, family: str) -> argparse.ArgumentParser:
    """folder: the script's. The default `examples` makes of "config" and "prompts" the files to start from."""
    ending = FAMILIES[family][0].ending
    parser = Parser(
        prog=script,
        description=description,
        epilog="A flag overrides the value in the YAML; the defaults are those of keys that are in neither.",
        allow_abbrev=False,
    )
    parser.set_defaults(examples=f"trainscripts/{folder}/data/{{}}{ending}.yaml")
    parser.add_argument("--config_file", required=True, type=path, metavar="YAML",
        help=f"the experiment; start from data/config{ending}.yaml")  # fmt: skip
    return parser


def _add_common_flags(parser: argparse.ArgumentParser, model: str, pairs: str, prompts: str) -> None:
    """model: the default. pairs: of what. prompts: what is trained without a prompts file."""
    add = parser.add_argument_group("overrides of the YAML").add_argument
    add("--attributes", default="", metavar="A, B, …",
        help="repeat each prompt set once per attribute, with the attribute in front of its prompts (default: none)")  # fmt: skip
    add("--name", help=default_of(Save, "name"))
    add("--rank", type=whole, help=default_of(Network, "rank"))
    add("--alpha", type=number, help=default_of(Network, "alpha"))
    add("--training_method", choices=TRAINING_METHODS, metavar="METHOD", help=default_of(Network, "training_method"))
    add("--model", type=place, metavar="NAME_OR_PATH",
        help=f"pretrained_model.name_or_path (default: {model})")  # fmt: skip
    add("--prompts_file", type=place, metavar="YAML", help=f"prompts_file, from the working directory ({prompts})")
    add("--iterations", type=whole, help=default_of(Train, "iterations"))
    add("--lr", type=number, help=default_of(Train, "lr"))
    add("--optimizer", metavar="NAME", help=f"{default_of(Train, 'optimizer')}: {', '.join(OPTIMIZERS)}")
    add("--seed", type=whole, help=default_of(Train, "seed"))
    add("--resolution", type=whole, metavar="PX",
        help=f"resolution of every prompt set (default: its own, or {PromptSet.model_fields['resolution'].default})")  # fmt: skip
    add("--batch_size", type=whole, metavar="PAIRS",
        help=f"batch_size of every prompt set: {pairs} (default: its own, or {PromptSet.model_fields['batch_size'].default})")  # fmt: skip
    add("--save_path", type=place, metavar="DIR", help=default_of(Save, "path"))
    add("--per_steps", type=whole, help=default_of(Save, "per_steps"))
    add = parser.add_argument_group("the run").add_argument
    add("--device", default="0", metavar="N", help="CUDA index (default: 0), or cpu, or mps")
    add(
        "--dry_run",
        action="store_true",
        help="check everything that needs no weights, print the plan and exit (default: train)",
    )
    add(
        "--resume",
        action="store_true",
        help="continue from the newest checkpoint of this run, if there is one (default: refuse if there is)",
    )
    add("--overwrite", action="store_true",
        help="replace an earlier run of the same name; with --resume, only one that has no checkpoint (default: refuse)")  # fmt: skip


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
            raise InputError(f"{flag} was given without a value: write for example {flag} {_example(flag)}.")
        joined.append(f"{flag}={(' ' if any(',' in w for w in words) else ', ').join(words)}")
    return joined


def _example(flag: str) -> str:
    return EXAMPLES.get(flag, "'first, second'")


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
            raise InputError(f"{flag}: {word!r} is not a finite number: write for example {flag} {_example(flag)}.")
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


def parse_flags(argv: list[str], family: str = DEFAULT_FAMILY) -> argparse.Namespace:
    """The image trainer's: `folders`, `scales` and `attributes` become tuples, `stylecheck` a range.

    Those that were not given, except `attributes`, are None.

    Raises InputError.
    """
    flags = _parsed(build_parser(family), argv)
    flags.folders = _parse_folders(flags.folders) if flags.folders is not None else None
    flags.stylecheck = parse_stylecheck(flags.stylecheck) if flags.stylecheck is not None else None
    return flags


def parse_text_flags(argv: list[str], family: str = DEFAULT_FAMILY) -> argparse.Namespace:
    """The text trainer's: `attributes` becomes a tuple, `scales` too if it was given. Raises InputError."""
    return _parsed(build_text_parser(family), argv)


def _parsed(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    flags = parser.parse_args(join_list_flags(argv))
    flags.scales = parse_scales(flags.scales) if flags.scales is not None else None
    flags.attributes = parse_names(flags.attributes)
    flags.device = parse_device(flags.device)
    return flags
