"""Prompts in Dynamic Prompts' own syntax → what each shows: its words, and the multiplier of every slider it names."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sliders.system.errors import InputError

TAG = re.compile(r"<(slider|lora):([^<>{}]*)>")
# Supplementary private-use characters stand for tags while the library reads a template: in its grammar `__`, `#`, `//`,
# `$` and `%`, all of which may stand in a slider's name, mean something.
FIRST_PLACEHOLDER = 0xF0000
PLACEHOLDER = re.compile("[\U000f0000-\U000ffffd]")
PROTECTED = re.compile(rf"{TAG.pattern}|{PLACEHOLDER.pattern}")
WILDCARD = re.compile(r"__[\w/*-]+__")
# What a web UI takes for weights, schedules and parts of a prompt; a backslash before a bracket is its way to mean one.
PLAIN_HERE = re.compile(r"(?<!\\)\([^()]*\)|(?<!\\)\[[^\[\]]*\]|\b(?:BREAK|AND)\b")
EXAMPLE = "'a robe {<slider:0>|<slider:0.8>|<slider:2>}'"


@dataclass(frozen=True)
class Variant:
    """One prompt that a template stands for. `multipliers`: (slider's name, multiplier), each name once, in order."""

    text: str  # without tags
    multipliers: tuple[tuple[str, float], ...]

    def multiplier(self, name: str) -> float:
        return dict(self.multipliers).get(name, 0.0)


@dataclass(frozen=True)
class Group:
    """Prompts that differ in one slider's multiplier only: one page section, one grid."""

    text: str
    axis: str  # the slider that moves
    others: tuple[tuple[str, float], ...]  # sliders that stay, and where
    multipliers: tuple[float, ...]  # of the axis, ascending, 0 among them

    def at(self, multiplier: float) -> Variant:
        return Variant(self.text, ((self.axis, multiplier), *self.others))

    @property
    def title(self) -> str:
        return " ".join([self.text, *(f"<lora:{name}:{m:g}>" for name, m in self.others)])


def plain_here(prompts: Iterable[str]) -> list[str]:
    """What in `prompts` would steer a web UI, but is read as plain text by diffusers' pipeline."""
    return list(dict.fromkeys(found for prompt in prompts for found in PLAIN_HERE.findall(prompt)))


def expand(template: str, slider: str, limit: int, wildcard_dir: Path | None = None) -> list[Variant]:
    """Every prompt that `template` stands for, each once; `<slider:X>` is the slider of the name `slider`.

    Raises InputError for what the syntax does not allow and for more than `limit` prompts.
    """
    prompts = list(dict.fromkeys(_combinations(template, limit, wildcard_dir)))
    if len(prompts) > limit:
        raise InputError(f"--prompt: {template!r} stands for more than {limit} prompts: use fewer alternatives.")
    return list(dict.fromkeys(_variant(prompt, template, slider) for prompt in prompts))


def check_wildcards(folder: Path) -> None:
    """Raises InputError for files that the library would read over: it leaves out what is no UTF-8, and keeps a mark."""
    for path in sorted(folder.rglob("*.txt")):
        raw = path.read_bytes()
        try:
            plain = not raw.decode("utf-8").startswith("\ufeff")
        except UnicodeDecodeError:
            plain = False
        if not plain:
            raise InputError(
                f"--wildcard_dir: {path} is no plain UTF-8, as some of Windows' programs save text: save it as UTF-8 without BOM."
            )


def _combinations(template: str, limit: int, wildcard_dir: Path | None) -> Iterator[str]:
    from dynamicprompts.generators import CombinatorialPromptGenerator  # 0.7 s that --help need not wait for
    from dynamicprompts.wildcards import WildcardManager
    from pyparsing.exceptions import ParseBaseException

    _check_braces(template)
    tags = list(dict.fromkeys(match[0] for match in PROTECTED.finditer(template)))
    protected = PROTECTED.sub(lambda match: chr(FIRST_PLACEHOLDER + tags.index(match[0])), template)
    generator = CombinatorialPromptGenerator(WildcardManager(wildcard_dir), ignore_whitespace=True)
    try:
        found = generator.generate(protected, limit + 1) or [""]
    except (ParseBaseException, ValueError, KeyError, RecursionError, AssertionError) as error:
        at = f" from character {error.loc + 1} on" if isinstance(error, ParseBaseException) else ""
        raise InputError(
            f"--prompt: {template!r} is not in Dynamic Prompts' syntax{at}: write for example {EXAMPLE}."
        ) from error
    for prompt in found:
        if unknown := WILDCARD.search(prompt):
            raise InputError(
                f"--prompt: {unknown[0]} is a wildcard without a file in --wildcard_dir ({wildcard_dir or 'not given'}): add it."
            )
        yield PLACEHOLDER.sub(lambda c: tags[ord(c[0]) - FIRST_PLACEHOLDER], prompt)


def _check_braces(template: str) -> None:
    """The library would take a stray } for text, and tells of an open { only that the text does not end there."""
    open_at: list[int] = []
    for at, character in enumerate(template, start=1):
        if character == "{":
            open_at.append(at)
        elif character == "}":
            if not open_at:
                raise InputError(f"--prompt: {template!r} has a }} at character {at} that closes nothing: remove it.")
            open_at.pop()
    if open_at:
        raise InputError(
            f"--prompt: {template!r} has a {{ at character {open_at[-1]} that is never closed: close it with }}."
        )


def _variant(prompt: str, template: str, slider: str) -> Variant:
    multipliers: dict[str, float] = {}
    for kind, content in TAG.findall(prompt):
        words = content.split(":")
        name = slider if kind == "slider" else words.pop(0).strip()
        # <lora:NAME> is at 1; of <lora:NAME:TEXT:UNET> a slider, which has no text part, takes the second number
        number = words[-1] if words else "1"
        try:
            value = float(number.replace("\N{MINUS SIGN}", "-").replace("_", "x"))
        except ValueError:
            value = float("nan")
        if not name or len(words) > (1 if kind == "slider" else 2) or not abs(value) < 1000:
            raise InputError(f"--prompt: <{kind}:{content}> has no number that is a multiplier: write {EXAMPLE}.")
        multipliers[name] = multipliers.get(name, 0.0) + value  # as in a web UI, twice the same adds up
    text = " ".join(TAG.sub(" ", prompt).split())
    if stray := re.search(r"<(?:slider|lora)\b[^>]*>?", text):
        raise InputError(f"--prompt: {stray[0]!r} in {template!r} is no whole tag: write {EXAMPLE}.")
    return Variant(text, tuple(multipliers.items()))


def group(variants: Sequence[Variant], slider: str) -> list[Group]:
    """The prompts of one template, grouped by what their scrubbed slider does not change.

    That slider is the first, in the order of the template, of which there are several multipliers. 0 is always among
    them, for change is measured against it.
    """
    names = list(dict.fromkeys(name for v in variants for name, _ in v.multipliers)) or [slider]
    moving = [name for name in names if len({v.multiplier(name) for v in variants}) > 1]
    axis = (moving or names)[0]
    found: dict[tuple, set[float]] = {}
    for v in variants:
        others = tuple((name, m) for name, m in v.multipliers if name != axis)
        found.setdefault((v.text, others), {0.0}).add(v.multiplier(axis))
    return [Group(text, axis, others, tuple(sorted(m))) for (text, others), m in found.items()]
