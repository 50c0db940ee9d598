"""Turns pydantic's errors into sentences that name the value, the place and the remedy in the words of a YAML file."""

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sliders.config.migration import ELSEWHERE

WANTED = {  # how the types of pydantic's errors begin → what should have been there
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string_type": "text",
    "path": "a path",
    "tuple": "a list",
    "list": "a list",
    "model": "a section with keys",
    "dict": "a section with keys",
}
NEAR = 0.7  # similarity of two keys of which one is probably the other with a typing error


def sentences(model: type[BaseModel], errors: list[dict], source: str, places: dict[str, str]) -> list[str]:
    """One for each place where something is wrong.

    source: the file that the values come from. places: {key: flag} of the values that flags have overridden.
    """
    found: dict[str, str] = {}
    for error in errors:
        unknown = error["type"] in ("extra_forbidden", "invalid_key")
        parts, field = _walk(model, error["loc"])
        key = ".".join(map(str, error["loc"] if unknown else parts))
        where = places.get(key, f"{source}: {key}" if key else source)
        if unknown:
            what = f" is not a known key: {_remedy_for_unknown(model, error['loc'])}"
        elif len(parts) < len(error["loc"]):  # none of a choice of types, each of which gives an error
            what = f": {_given(error['input'])} is not valid: write {_example('another value', field)}"
        else:
            what = _what_is_wrong(error, field)
        found.setdefault(key, f"{where}{what}.")
    return list(found.values())


def _what_is_wrong(error: dict, field: FieldInfo | None) -> str:
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return " is missing: add it"
    if kind == "value_error":
        return f": {error['ctx']['error']}"
    if kind == "literal_error":
        return f": {_given(value)} is not one of its values: use {error['ctx']['expected']}"
    if kind == "string_too_short":
        return f": {value!r} is empty: write something, or remove the line"
    wanted = next((wanted for start, wanted in WANTED.items() if kind.startswith(start)), None)
    if wanted is None:
        return f": {_given(value)} is not valid: {error['msg'].replace('Input', 'it', 1)}"
    return f": {_given(value)} is not {wanted}: {_remedy(wanted, value, field)}"


def _given(value: Any) -> str:
    """The value as it looks in YAML."""
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return str(value).lower()
    for kind, name in ((list | tuple, "a list"), (dict, "a mapping"), (set, "a set")):
        if isinstance(value, kind):
            return name
    return repr(value)


def _remedy(wanted: str, value: Any, field: FieldInfo | None) -> str:
    match wanted, value:
        case "a section with keys", _:
            remedy = "write its keys below it, each on a line of its own, indented, or leave it out"
        case "true or false", _:
            remedy = "write true or false"
        case _, None:
            remedy = f"write {_example(wanted, field)}, or remove the line"
        case "a list", dict():
            remedy = "write its values on lines of their own, each after '- '"
        case "a list", _:
            remedy = (
                "write its values in brackets with commas, such as [0, 1], or on lines of their own, each after '- '"
            )
        case "text" | "a path", list():
            remedy = "write one value, in quotes if it contains brackets"
        case "text" | "a path", dict():
            remedy = "put it in quotes, such as \"{caption}, red\": braces and ': ' have a meaning in YAML"
        case "text" | "a path", _:
            remedy = "put it in quotes"
        case "a number" | "a whole number", str() if re.fullmatch(r"[-+]?\d+,\d+(e[-+]?\d+)?", value.strip()):
            remedy = "write it with a decimal point, not a comma"
        case _:
            remedy = f"write {_example(wanted, field)}"
    return remedy


def _example(wanted: str, field: FieldInfo | None) -> str:
    """`for example 500`: the field's default, or its examples; without either, what is wanted."""
    if field is None or (not field.examples and (field.is_required() or field.default in (None, "", ()))):
        return wanted
    return " or ".join(field.examples) if field.examples else f"for example {field.default}"


def _walk(model: type[BaseModel], location: tuple) -> tuple[tuple, FieldInfo | None]:
    """The keys and list positions of a location, without the names that pydantic gives to the types of a choice; and the field."""
    parts, here, field = [], model, None
    for part in location:
        if isinstance(part, str):
            if here is None or part not in here.model_fields:
                break
            field = here.model_fields[part]
            here = _section(field.annotation)
        parts.append(part)
    return tuple(parts), field


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def _remedy_for_unknown(model: type[BaseModel], location: tuple) -> str:
    """What to write instead: what other trainers' key is here, the same key of another section, or one that is nearly the same."""
    *above, key = location
    _, field = _walk(model, tuple(above))
    here = model if field is None else _section(field.annotation)
    word = str(key).lower().replace("-", "_")
    if word in ELSEWHERE:
        return ELSEWHERE[word]
    sections = {name: s for name, f in model.model_fields.items() if (s := _section(f.annotation)) and s is not here}
    if elsewhere := [f"{name}.{word}" for name, section in sections.items() if word in section.model_fields]:
        return f"did you mean {elsewhere[0]}"
    if near := difflib.get_close_matches(word, here.model_fields, n=1, cutoff=NEAR):
        return f"did you mean {near[0]!r}"
    return f"the known keys are {', '.join(here.model_fields)}"
