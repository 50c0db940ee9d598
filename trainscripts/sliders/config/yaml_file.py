"""Reads YAML files so that every value means what it looks like, or is refused with its line.

YAML 1.1, which PyYAML reads, turns `010` into 8, `1:30` into 90, `off` into false and `2024-01-01` into a date.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from sliders.config.fields import DECIMAL
from sliders.system.errors import InputError
from sliders.system.files import why_not_read

MAX_PAIRS = 1000
MAX_BYTES = 1_000_000
TAG = "tag:yaml.org,2002:"
NO_VALUES = (f"{TAG}timestamp", f"{TAG}value")  # dates, and `=`: text here
TRUE_OR_FALSE = re.compile("true|True|TRUE|false|False|FALSE")  # yes, no, on and off are words
REMEDIES = {  # part of PyYAML's description of a problem → what to do
    "escape": r"remove the double quotes, or write each \ in them as \\",
    "mapping values are not allowed": "put the text in quotes if it contains ': ', and indent keys with the same spaces",
    "cannot start any token": "put the text in quotes, and indent with spaces, not tabs",
    "expected <block end>": "put text that begins with a quote, brace or bracket wholly in quotes, and indent keys alike",
    "another document": "remove the lines --- and what follows the second one",
    "undefined alias": "put text that begins with * in quotes",
    "constructor": "put text that begins with ! in quotes",
}


def read_yaml(path: Path, place: str) -> Any:
    """The content of a YAML file. Raises InputError. place: the flag or key that names it."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        reason = why_not_read(path, error)
        raise InputError(f"{place}: {path} cannot be read ({reason}): check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: {path} is not UTF-8 text: save it as UTF-8.") from error
    except ValueError as error:  # such as a zero byte in the path
        raise InputError(f"{place}: {str(path)!r} cannot be a path: correct it.") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{place}: {path} is larger than {MAX_BYTES:,} bytes, too large for settings: check the path.")
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: it builds plain values only
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path}{_what_is_wrong(error)}.") from error


def _what_is_wrong(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    if isinstance(error, _Ambiguous):
        return f"{where}: {error.problem}"
    problem = getattr(error, "problem", None) or "cannot be parsed"
    remedy = next((remedy for part, remedy in REMEDIES.items() if part in problem), "correct that line")
    return f"{where}: is not valid YAML ({problem}): {remedy}"


class _Ambiguous(yaml.MarkedYAMLError):
    """A value that YAML 1.1 reads as another than is written."""


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML would silently use the last, and numbers that are not what they look like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"{key_node.value} appears twice", key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Limits merge keys (`<<`): nested ones can expand a few lines to billions of pairs."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_PAIRS:
            problem = f"more than {MAX_PAIRS} keys are merged into one mapping"
            raise yaml.MarkedYAMLError(None, None, problem, node.start_mark)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = self.construct_scalar(node)
        make = self.construct_yaml_int if node.tag.endswith("int") else self.construct_yaml_float
        value = make(node)
        digits = text.lstrip("+-")
        octal = isinstance(value, int) and digits.startswith("0") and digits != "0"
        if octal or not (DECIMAL.fullmatch(text) or text.lower().endswith((".inf", ".nan"))):
            plain = re.sub(r"^(-?)0+(?=\d)", r"\1", text.replace("_", "").lstrip("+"))
            meant = plain if DECIMAL.fullmatch(plain) else f"{value:.12g}"
            problem = f"YAML reads {text} as {value:.12g}: write {meant}, or '{text}' in quotes if it is text"
            raise _Ambiguous(None, None, problem, node.start_mark)
        return value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"{TAG}{_kind}", _Loader.construct_number)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, TRUE_OR_FALSE if tag == f"{TAG}bool" else pattern) for tag, pattern in known if tag not in NO_VALUES]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
