"""Field types for the YAML files: numbers, paths, and names that have several spellings."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _no_control_character(value: Any) -> Any:
    r"""In double quotes, YAML reads the backslashes of Windows paths, such as `"D:\new"` or `"D:\Loras"`, as escapes."""
    if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f-\xa0\u2028\u2029]", value):
        raise ValueError(
            f"{value!r} contains a control character, as a Windows path in double quotes does: write it without them, or with / "
            "instead of \\"
        )
    return value


def spelled(aliases: dict[str, str]) -> BeforeValidator:
    """Ignores case and accepts `aliases`, the short spellings in the original trainers' files."""
    return BeforeValidator(lambda v: aliases.get(v.lower(), v.lower()) if isinstance(v, str) else v)


def switch(on: str) -> BeforeValidator:
    """Accepts true for `on` and false for "off": YAML reads a bare `off` as false, and the original trainers wrote true."""
    return BeforeValidator(lambda v: (on if v else "off") if isinstance(v, bool) else v)


one_or_more = BeforeValidator(lambda v: () if v is None else [v] if isinstance(v, str | dict) else v)
_PRECISION_ALIASES = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[FiniteFloat, BeforeValidator(_no_bool)]
Place = Annotated[str, Field(min_length=1), BeforeValidator(_no_control_character)]  # a path, or a hub id
Folder = Annotated[Path, BeforeValidator(_no_control_character)]
TrainPrecision = Annotated[Literal["bfloat16", "float32"], spelled(_PRECISION_ALIASES)]
SavePrecision = Annotated[Literal["float32", "float16", "bfloat16"], spelled(_PRECISION_ALIASES)]


class Section(BaseModel):
    """A YAML mapping that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
