"""Names of models, and sentences about what is wrong with one."""

from collections.abc import Iterator
from contextlib import contextmanager

from sliders.config.schema import PretrainedModel
from sliders.system.errors import InputError, first_line

TINY = "tiny"  # instead of a name: a small model with random weights
HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
PARTS = {  # of pipelines, in words
    "unet": "UNet",
    "transformer": "transformer",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}


def place_of(settings: PretrainedModel) -> str:
    """How sentences about the model begin."""
    return f"pretrained_model.name_or_path: {settings.name_or_path}"


@contextmanager
def loading(part: str, place: str) -> Iterator[None]:
    """Whatever a library raises in the block becomes one sentence that names the part, a key of PARTS or another name."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # libraries raise nearly anything for files that they did not write
        reason = first_line(error).rstrip(".")
        raise InputError(
            f"{place}: its {PARTS.get(part, part)} cannot be loaded ({type(error).__name__}: {reason}): choose a complete model, and "
            "check that enough memory is free."
        ) from error
