"""Turns off the model libraries' progress bars, which would mix with ours."""

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging as transformers_logging


def hide_progress_bars() -> None:
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # the calls above also turn off the hub's, but a large download must not look like a hang
