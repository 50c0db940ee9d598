"""What a run leaves in its folder: states, sliders with their cards, pictures. And what an earlier run left there."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from sliders.cards import write_card
from sliders.checkpoint import save_slider, slider_metadata, slider_tensors
from sliders.dataset import ScaleFolders
from sliders.device import DTYPES
from sliders.files import SAME_NAME, remove, remove_leftovers, written_whole
from sliders.models.sdxl import SDXL
from sliders.network import AdaptorNetwork
from sliders.schema import Settings
from sliders.states import changeable, identity, model_fingerprint, prune_states, state_path, write_state


class Outputs:
    """The files of one run, each whole or not there.

    identity: what makes the run this one. It is taken at once, for it reads the images, which may be gone at a save.
    """

    def __init__(self, settings: Settings, data: ScaleFolders):
        self._settings, self._data = settings, data
        self.identity = identity(settings, data)
        self.started = training_time()
        self._prediction = ""
        self._replaced: list[Path] = []

    def know_model(self, model: SDXL) -> None:
        """To be told before its encoders leave: the model is a part of the run's identity, and of a slider's metadata."""
        pipe = model.pipe
        self.identity["model"] = model_fingerprint(model.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
        self._prediction = model.schedule.prediction_type

    def path(self, suffix: str) -> Path:
        """Of the slider with that suffix: `last`, or `500steps`."""
        return self._settings.run_dir / f"{self._settings.stem}_{suffix}.safetensors"

    def begin(self, done: int) -> None:
        """Remove what killed processes left half-written, and states that step `done` does not come from.

        What a run that this one replaces has made stays until there is something to replace it.
        """
        settings = self._settings
        if not settings.run_dir.is_dir():
            return
        remove_leftovers(settings.run_dir, settings.stem)
        prune_states(settings, done)
        if settings.overwrite and done == 0:
            endings = r"_(\d+steps|last)\.(safetensors|json|preview\.png)"
            ours = re.compile(re.escape(settings.stem) + endings, SAME_NAME)
            self._replaced = [path for path in settings.run_dir.iterdir() if ours.fullmatch(path.name)]

    def save(self, suffix: str, done: int, tensors: dict, network: AdaptorNetwork) -> dict[str, OSError]:
        """The state and the slider of the steps done, in this order: `Trainer.resume` mends what a kill between them leaves.

        Each is tried, whatever becomes of the others. Returns {what could not be saved: why}.
        """
        failures: dict[str, OSError] = {}
        slider = "the last slider" if suffix == "last" else "the slider"
        with _noted(failures, "the state"):
            self.save_state(done, tensors)
        with _noted(failures, slider):
            self.save_slider(suffix, done, network)
        if self._settings.save.sidecars and slider not in failures:
            with _noted(failures, "the card"):
                write_card(self.path(suffix), self._settings)
        return failures

    def save_state(self, done: int, tensors: dict) -> None:
        """Raises OSError."""
        header = {"step": done, "started": self.started, "run": self.identity, "also": changeable(self._settings)}
        self._settings.run_dir.mkdir(parents=True, exist_ok=True)
        write_state(state_path(self._settings, done), header, tensors)
        prune_states(self._settings, done)

    def save_slider(self, suffix: str, done: int, network: AdaptorNetwork) -> None:
        """Raises OSError."""
        path = self.path(suffix)
        metadata = slider_metadata(
            self._settings,
            self._data,
            stem=path.stem,
            steps=done,
            started=self.started,
            prediction=self._prediction,
        )
        save_slider(path, slider_tensors(network, DTYPES[self._settings.save.precision]), metadata)
        for earlier in self._replaced:
            if earlier != path:
                remove(earlier)
        self._replaced = []

    def save_picture(self, suffix: str, picture: Image.Image) -> None:
        """Beside the slider of that suffix, as web UIs look for it. Raises OSError."""
        with written_whole(self.path(suffix).with_suffix(".preview.png")) as temporary:
            picture.save(temporary, format="PNG")


@contextmanager
def _noted(failures: dict[str, OSError], what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        failures[what] = error


def reasons(failures: dict[str, OSError]) -> str:
    """`the state and the slider could not be saved (No space left on device)`"""
    told = dict.fromkeys(error.strerror or str(error) for error in failures.values())
    return f"{' and '.join(failures)} could not be saved ({'; '.join(told)})"


def training_time() -> float:
    """Seconds since 1970 that a file says it was trained at; SOURCE_DATE_EPOCH, where set, makes files reproducible."""
    return float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
