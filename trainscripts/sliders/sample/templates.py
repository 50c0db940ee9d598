"""Expands prompts in Dynamic Prompts syntax, and reads the multiplier of every slider that they name."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sliders.report.web_ui import multiplier_template
from sliders.system.errors import InputError

TAG = re.compile(r"<(slider|lora):((?:[^<>|]*:)?[^<>{}]*)>")  # files of older runs may have braces in their names
# Private-use characters replace the tags while the library parses a template: sliders' names may contain `__`, `#`,
# `//`, `$` and `%`, which have a meaning in its grammar.
FIRST_PLACEHOLDER = 0xF0000
PLACEHOLDER = re.compile("[\U000f0000-\U000ffffd]")
PROTECTED = re.compile(rf"{TAG.pattern}|{PLACEHOLDER.pattern}")
# Web UIs read these as weights, schedules and separators, unless a backslash precedes the bracket.
WEB_UI_SYNTAX = re.compile(r"(?<!\\)\([^()]*\)|(?<!\\)\[[^\[\]]*\]|\b(?:BREAK|AND)\b")
EXAMPLE = "'a robe {<slider:0>|<slider:0.8>|<slider:2>}'"


@dataclass(frozen=True)
class Variant:
    """One of the prompts that a template expands to."""

    text: str  # without tags
    multipliers: tuple[tuple[str, float], ...]  # (slider name, multiplier), each name once, in the prompt's order

    def multiplier(self, name: str) -> float:
        """0 for a slider that the prompt does not name."""
        return dict(self.multipliers).get(name, 0.0)


@dataclass(frozen=True)
class Group:
    """Prompts that differ only in the multiplier of one slider: one grid, and one section of the page."""

    text: str
    axis: str  # name of the slider whose multiplier varies
    others: tuple[tuple[str, float], ...]  # (name, multiplier) of sliders that stay the same
    multipliers: tuple[float, ...]  # of the axis, ascending, including 0

    def at(self, multiplier: float) -> Variant:
        return Variant(self.text, ((self.axis, multiplier), *self.others))

    @property
    def variants(self) -> tuple[Variant, ...]:
        """One for each multiplier."""
        return tuple(map(self.at, self.multipliers))

    @property
    def title(self) -> str:
        return " ".join([self.text, *(f"<lora:{name}:{m:g}>" for name, m in self.others)])


def web_ui_syntax(prompts: Iterable[str]) -> list[str]:
    """The parts of `prompts` that have a meaning in web UIs but are plain text to diffusers' pipeline."""
    return list(dict.fromkeys(found for prompt in prompts for found in WEB_UI_SYNTAX.findall(prompt)))


def expand(template: str, slider: str, limit: int, wildcard_dir: Path | None = None) -> list[Variant]:
    """All prompts that `template` expands to, each once. `<slider:X>` refers to the slider named `slider`.

    Raises InputError for invalid syntax and for more than `limit` prompts.
    """
    prompts = list(dict.fromkeys(_combinations(template, limit, wildcard_dir)))
    if len(prompts) > limit:
        raise InputError(f"--prompt: {template!r} expands to more than {limit} prompts: use fewer alternatives.")
    return list(dict.fromkeys(_variant(prompt, template, slider) for prompt in prompts))


def is_read_as_written(stem: str, multipliers: Sequence[float]) -> bool:
    """Whether the prompt that a run prints for the slider `stem` expands to the tags in it, in a web UI as well.

    There, unlike in `expand`, nothing protects a slider's name from Dynamic Prompts' syntax.
    """
    from dynamicprompts.generators import CombinatorialPromptGenerator  # takes 0.2 s, not needed for --help
    from dynamicprompts.wildcards import WildcardManager
    from pyparsing.exceptions import ParseBaseException

    template = multiplier_template(stem, multipliers)
    if template.count("__") > 1:  # a wildcard, for whose value the library would look without end
        return False
    try:
        return [*CombinatorialPromptGenerator(WildcardManager()).generate(template)] == template[1:-1].split("|")
    except (ParseBaseException, ValueError, KeyError, RecursionError, AssertionError):
        return False


def _combinations(template: str, limit: int, wildcard_dir: Path | None) -> Iterator[str]:
    from dynamicprompts.generators import CombinatorialPromptGenerator  # takes 0.7 s, not needed for --help
    from pyparsing.exceptions import ParseBaseException

    from sliders.sample.wildcards import Wildcards

    check_braces(PROTECTED.sub(lambda match: " " * len(match[0]), template), template)
    tags = list(dict.fromkeys(match[0] for match in PROTECTED.finditer(template)))
    protected = PROTECTED.sub(lambda match: chr(FIRST_PLACEHOLDER + tags.index(match[0])), template)
    generator = CombinatorialPromptGenerator(Wildcards(wildcard_dir), ignore_whitespace=True)
    try:
        found = generator.generate(protected, limit + 1) or [""]
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(
            f"--prompt: {template!r} refers to itself without end, or is nested too deeply: simplify it."
        ) from error
    except (ParseBaseException, ValueError, KeyError, AssertionError) as error:
        at = f" at character {error.loc + 1}" if isinstance(error, ParseBaseException) else ""
        lines = ", or a line in one of its wildcards' files," if "__" in template else ""
        raise InputError(
            f"--prompt: {template!r}{lines} is not valid Dynamic Prompts syntax{at}: write for example {EXAMPLE}."
        ) from error
    for prompt in found:
        yield PLACEHOLDER.sub(lambda c: tags[ord(c[0]) - FIRST_PLACEHOLDER], prompt)


def check_braces(text: str, template: str) -> None:
    """The library accepts a stray } as text, and for an unclosed { it does not report the position.

    text: the template with blanks in place of its tags.
    """
    open_at: list[int] = []
    for at, character in enumerate(text, start=1):
        if character == "{":
            open_at.append(at)
        elif character == "}":
            if not open_at:
                raise InputError(f"--prompt: {template!r} has a }} at character {at} without a matching {{: remove it.")
            open_at.pop()
    if open_at:
        raise InputError(
            f"--prompt: {template!r} has a {{ at character {open_at[-1]} that is never closed: close it with }}."
        )


def _variant(prompt: str, template: str, slider: str) -> Variant:
    """Separates the text of an expanded prompt from its tags."""
    multipliers: dict[str, float] = {}
    for kind, content in TAG.findall(prompt):
        words = content.split(":")
        name = slider if kind == "slider" else words.pop(0).strip()
        # <lora:NAME> means 1; of <lora:NAME:TEXT:UNET> the second number counts, because sliders only change the UNet
        number = words[-1] if words else "1"
        try:
            value = float(number.replace("\N{MINUS SIGN}", "-").replace("_", "x"))
        except ValueError:
            value = float("nan")
        if not name or len(words) > (1 if kind == "slider" else 2) or not abs(value) < 1000:
            raise InputError(
                f"--prompt: <{kind}:{content}> has no valid multiplier (between −1000 and 1000): write for example {EXAMPLE}."
            )
        multipliers[name] = multipliers.get(name, 0.0) + value  # repeated tags add up, as in web UIs
    text = " ".join(TAG.sub(" ", prompt).split())
    if stray := re.search(r"<(?:slider|lora)\b[^>]*>?", text):
        raise InputError(f"--prompt: {stray[0]!r} in {template!r} is not a complete tag: write for example {EXAMPLE}.")
    return Variant(text, tuple(multipliers.items()))


def group(variants: Sequence[Variant], slider: str) -> list[Group]:
    """Groups the prompts of one template that differ only in the multiplier of one slider, the axis.

    The axis is the first slider in the template with several multipliers. Each group includes its multiplier 0, because
    change is measured against it.
    """
    names = list(dict.fromkeys(name for v in variants for name, _ in v.multipliers)) or [slider]
    moving = [name for name in names if len({v.multiplier(name) for v in variants}) > 1]
    axis = (moving or names)[0]
    found: dict[tuple, set[float]] = {}
    for v in variants:
        others = tuple((name, m) for name, m in v.multipliers if name != axis)
        found.setdefault((v.text, others), {0.0}).add(v.multiplier(axis))
    return [Group(text, axis, others, tuple(sorted(m))) for (text, others), m in found.items()]
