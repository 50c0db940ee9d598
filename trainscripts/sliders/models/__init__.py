"""Model families: what is true only of one of them stands in its own files."""

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging as transformers_logging

# Their remarks at import and on every cast ("requires torchvision", "kept in float32: []") tell a user nothing to act on.
diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
enable_progress_bars()  # transformers turned off the hub's as well, and a download of gigabytes must not look like a hang
