"""Silences what the model libraries print at import and on every cast: it tells a user nothing to act on."""

import logging

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging as transformers_logging


def silence_libraries() -> None:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # an optional kernel, never used here
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    enable_progress_bars()  # the hub's too were turned off, and a download of gigabytes must not look like a hang
