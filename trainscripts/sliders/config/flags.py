"""The command line: its flags, and the many ways in which shells pass lists of numbers or names."""

import argparse
import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path

from sliders.config.optimizers import OPTIMIZERS
from sliders.config.schema import DEFAULT_FAMILY, FAMILY_ENDINGS, TRAINING_METHODS
from sliders.system.errors import InputError

LIST_FLAGS = ("--scales", "--folders", "--attributes")
DEFAULT_FOLDERS = "verylow, low, high, veryhigh"
DEFAULT_SCALES = "-2, -1, 1, 2"
DEFAULT_RANGE = "-1, 1"
QUOTES = ("'", '"')
NAME = re.compile(r"""\s*(?:"[^"]*"|'[^']*')\s*(?=,|$)|[^,]+""")  # in a list separated by commas
EXAMPLES = {"--scales": "0.67, 1, 1.3, 2.0", "--multipliers": "0, 1, 2", "--seeds": "1, 2, 3"}


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises `InputError` instead of exiting."""

    def error(self, message: str):
        if unknown := message.partition("unrecognized arguments: ")[2].split():
            near = difflib.get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, n=1)
            message = f"{unknown[0]} is not a known flag{f': did you mean {near[0]}' if near else ''}"
        raise InputError(f"{message[0].upper()}{message[1:]} (see --help).")


def build_parser(family: str = DEFAULT_FAMILY) -> argparse.ArgumentParser:
    """Of the image trainer."""
    parser = _parser(
        f"train_lora-scale{FAMILY_ENDINGS[family]}.py",
        "Train a concept slider from folders of images, one folder per multiplier.",
        folder="imagesliders",
        family=family,
    )
    add = parser.add_argument_group("data").add_argument
    add("--folder_main", required=True, type=Path, metavar="DIR",
        help="the data set: the folder that contains the --folders")  # fmt: skip
    add("--folders", default=DEFAULT_FOLDERS, metavar="A, B, …",
        help="one subfolder per scale, with the same file names in each; a name that contains a comma stands in double quotes "
        f"(default: {DEFAULT_FOLDERS})")  # fmt: skip
    add("--scales", default=DEFAULT_SCALES, metavar="X, Y, …",
        help=f"the multiplier at which the slider should produce each folder's images (default: {DEFAULT_SCALES})")  # fmt: skip
    add("--stylecheck", metavar="A-B",
        help="train one slider for each of the data sets DIR+A … DIR+(B-1), named after its folder")  # fmt: skip
    _add_common_flags(parser, pairs="pairs of images")
    return parser


def build_text_parser() -> argparse.ArgumentParser:
    """Of the text trainer."""
    parser = _parser(
        "train_lora_xl.py",
        "Train a concept slider from prompts alone, without images.",
        folder="textsliders",
        family=DEFAULT_FAMILY,
    )
    add = parser.add_argument_group("data").add_argument
    add("--scales", default=DEFAULT_RANGE, metavar="X, Y, …",
        help=f"multipliers to train: all between the lowest and the highest (default: {DEFAULT_RANGE})")  # fmt: skip
    _add_common_flags(parser, pairs="pairs of pictures")
    return parser


def _parser(script: str, description: str, folder: str, family: str) -> argparse.ArgumentParser:
    """folder: the script's. The default `examples` makes of "config" and "prompts" the files to start from."""
    ending = FAMILY_ENDINGS[family]
    parser = Parser(
        prog=script,
        description=description,
        epilog="Values in the YAML apply unless a flag overrides them.",
        allow_abbrev=False,
    )
    parser.set_defaults(examples=f"trainscripts/{folder}/data/{{}}{ending}.yaml")
    parser.add_argument("--config_file", required=True, type=Path, metavar="YAML",
        help=f"the experiment; start from data/config{ending}.yaml")  # fmt: skip
    return parser


def _add_common_flags(parser: argparse.ArgumentParser, pairs: str) -> None:
    add = parser.add_argument_group("overrides of the YAML").add_argument
    add("--attributes", default="", metavar="A, B, …",
        help="repeat each prompt set once per attribute, with the attribute in front of its prompts")  # fmt: skip
    add("--name", help="save.name")
    add("--rank", type=int, help="network.rank")
    add("--alpha", type=float, help="network.alpha")
    add("--training_method", choices=TRAINING_METHODS, metavar="METHOD", help="network.training_method")
    add("--model", metavar="NAME_OR_PATH", help="pretrained_model.name_or_path")
    add("--prompts_file", metavar="YAML", help="prompts_file")
    add("--iterations", type=int, help="train.iterations")
    add("--lr", type=float, help="train.lr")
    add("--optimizer", metavar="NAME", help=f"train.optimizer: {', '.join(OPTIMIZERS)}")
    add("--seed", type=int, help="train.seed")
    add("--resolution", type=int, metavar="PX", help="resolution of every prompt set")
    add("--batch_size", type=int, metavar="PAIRS", help=f"batch_size of every prompt set, in {pairs}")
    add("--save_path", metavar="DIR", help="save.path")
    add("--per_steps", type=int, help="save.per_steps")
    add = parser.add_argument_group("the run").add_argument
    add("--device", default="0", metavar="N", help="CUDA index (default: 0), or cpu, or mps")
    add("--dry_run", action="store_true", help="check everything that needs no weights, print the plan and exit")
    add("--resume", action="store_true", help="continue from the newest checkpoint of this run, if there is one")
    add("--overwrite", action="store_true",
        help="replace an earlier run of the same name; with --resume, only one that has no checkpoint")  # fmt: skip


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
    """The image trainer's: `folders`, `scales` and `attributes` become tuples, `stylecheck` a range or None.

    Raises InputError.
    """
    flags = _parsed(build_parser(family), argv)
    flags.folders = parse_names(flags.folders)
    flags.stylecheck = parse_stylecheck(flags.stylecheck) if flags.stylecheck is not None else None
    return flags


def parse_text_flags(argv: list[str]) -> argparse.Namespace:
    """The text trainer's: `scales` and `attributes` become tuples. Raises InputError."""
    return _parsed(build_text_parser(), argv)


def _parsed(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    flags = parser.parse_args(join_list_flags(argv))
    flags.scales = parse_scales(flags.scales)
    flags.attributes = parse_names(flags.attributes)
    flags.device = parse_device(flags.device)
    return flags
