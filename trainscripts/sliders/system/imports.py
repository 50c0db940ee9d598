"""Imports of the libraries of a run, which take up most of its start."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sliders.system.progress import now

# packages that diffusers and transformers import if they are installed, for what is not done here
UNUSED = ("peft", "sklearn")  # LoRAs of diffusers; generation of text
QUANTISED = "bitsandbytes"  # loading what is quantised already; for anything else, this project imports it itself


@contextmanager
def quick_imports(model: str | None) -> Iterator[None]:
    """Imports in its block are not interrupted by garbage collection, and leave out packages that are not used.

    Python would look through all that is imported so far again and again, although none of it is garbage. Nor does it
    afterwards: that makes later collections short.

    model: the name or path of the one to be loaded, if any.
    """
    if "torch" not in sys.modules:
        now("importing PyTorch and the model libraries")
    hidden = {*UNUSED} if may_be_quantised(model) else {*UNUSED, QUANTISED}
    hidden -= set(sys.modules)
    if "diffusers" in sys.modules:  # it has found them already, and relies on them
        hidden = set()
    collecting = gc.isenabled()
    gc.disable()
    sys.modules.update(dict.fromkeys(hidden))  # None: Python then says that there is no such module
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        if collecting:
            gc.enable()


def may_be_quantised(model: str | None) -> bool:
    """Whether a model may contain weights that diffusers quantised: those of a hub id are not known before a download."""
    if model is None or Path(model).is_file():
        return False
    if Path(model).is_dir():
        configs = Path(model).glob("*/config.json")
        return any("quantization_config" in path.read_text(encoding="utf-8", errors="replace") for path in configs)
    return "/" in model
