"""Field types for the YAML files: numbers, paths, and names that have several spellings."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat
from pydantic_core import PydanticCustomError

from sliders.config.migration import NO_FLOAT16, PRECISIONS, refused, spelled
from sliders.config.paths import expanded

DECIMAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def as_number(value: Any) -> Any:
    """Text that is a number, such as `1e-4` for YAML 1.1, becomes one.

    So `"1_000"` is refused, which Python, and with it pydantic, would read as a number.
    """
    if isinstance(value, bool) or (isinstance(value, str) and not DECIMAL.fullmatch(value.strip())):
        raise PydanticCustomError("float_plain", "not a number in plain digits")
    if isinstance(value, str):
        return float(value) if re.search(r"[.e]", value, re.IGNORECASE) else int(value)
    return value


def _path(value: Any) -> Any:
    return expanded(value) if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    if isinstance(value, dict | list):
        raise ValueError(
            "should be text with all arguments in it: write for example weight_decay=0.01 betas=(0.9,0.99)"
        )
    return "" if value is None else value


one_or_more = BeforeValidator(lambda v: () if v is None else [v] if isinstance(v, str | dict) else v)
Whole = Annotated[int, BeforeValidator(as_number)]
Number = Annotated[FiniteFloat, BeforeValidator(as_number)]
Place = Annotated[str, Field(min_length=1), BeforeValidator(_path)]  # a path, or a hub id
Folder = Annotated[Path, BeforeValidator(_path)]
Arguments = Annotated[str, BeforeValidator(_as_text)]  # of an optimizer
TrainPrecision = Annotated[Literal["bfloat16", "float32"], refused(NO_FLOAT16), spelled(PRECISIONS)]
SavePrecision = Annotated[Literal["float32", "float16", "bfloat16"], spelled(PRECISIONS)]


class Section(BaseModel):
    """A YAML mapping that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
