"""The files in a run's folder: checkpoints, sliders with their sidecars, pictures, and what an earlier run left there."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.device import DTYPES
from sliders.formats.cards import keep_card
from sliders.formats.checkpoint import changeable, checkpoint_path, prune_checkpoints, write_checkpoint
from sliders.formats.metadata import slider_metadata
from sliders.formats.model_loras import TRAINED_WITH
from sliders.formats.sidecar import write_sidecar
from sliders.formats.slider_file import not_finite, save_slider, slider_tensors
from sliders.models.base import Model
from sliders.report.card import Card
from sliders.report.page import Page, write_page
from sliders.system.errors import InputError
from sliders.system.files import SAME_NAME, atomic_write, remove, remove_leftovers
from sliders.system.processes import Processes
from sliders.train.plan import Plan


class Outputs:
    """Writes the files of one run. Under its final name, each is complete or absent."""

    def __init__(self, plan: Plan, processes: Processes):
        self._plan, self._settings, self._processes = plan, plan.settings, processes
        self.identity = dict(plan.identity)  # reads the images now: they may be gone when the run saves
        self.started = training_time()
        self.shown: list[Path] = []  # the last picture and the page
        self._prediction = ""
        self._replaced: list[Path] = []

    def know_model(self, model: Model) -> None:
        """Adds the model to the run's identity and to the metadata. Call it before the text encoders are freed."""
        self.identity["model"] = model.fingerprint()
        self._prediction = model.objective.prediction_type

    def path(self, suffix: str) -> Path:
        """Path of the slider with this suffix, such as `500steps` or `last`."""
        return self._settings.run_dir / f"{self._settings.stem}_{suffix}.safetensors"

    def begin(self, done: int) -> None:
        """Removes what killed processes left half-written, and checkpoints of steps after `done`.

        The sliders of a run that this one replaces stay until it saves its first.
        """
        settings = self._settings
        if not settings.run_dir.is_dir():
            return
        remove_leftovers(settings.run_dir, settings.stem)
        prune_checkpoints(settings, done)
        if settings.overwrite and done == 0:
            endings = r"_(\d+steps|last)\.(safetensors|json|html|preview\.png)"
            ours = re.compile(re.escape(settings.stem) + endings, SAME_NAME)
            self._replaced = [path for path in settings.run_dir.iterdir() if ours.fullmatch(path.name)]

    def save(self, suffix: str, done: int, tensors: dict, network: AdaptorNetwork) -> dict[str, OSError]:
        """Saves the checkpoint, then the slider and its sidecar. If killed in between, `Trainer.resume` writes the slider.

        Tries each even if another fails. Returns {what could not be saved: the error}.
        """
        failures: dict[str, OSError] = {}
        slider = "the last slider" if suffix == "last" else "the slider"
        with _noted(failures, "the checkpoint"):
            self.save_checkpoint(done, tensors)
        with _noted(failures, slider):
            self.save_slider(suffix, done, network)
        if self._settings.save.sidecars and slider not in failures:
            with _noted(failures, "the sidecar"):
                write_sidecar(self.path(suffix), self._settings, self._plan.family)
        return failures

    def save_checkpoint(self, done: int, tensors: dict) -> None:
        """Writes the checkpoint and removes older ones beyond `save.keep`. Raises OSError."""
        header = {"step": done, "started": self.started, "run": self.identity, "also": changeable(self._settings)}
        header["processes"] = self._processes.count
        self._settings.run_dir.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint_path(self._settings, done), header, tensors)
        prune_checkpoints(self._settings, done)

    def save_slider(self, suffix: str, done: int, network: AdaptorNetwork) -> None:
        """Writes the slider, then removes those of a run that this one replaces. Raises OSError, and InputError for NaN."""
        path = self.path(suffix)
        metadata = slider_metadata(
            self._settings,
            self._plan.data,
            self._plan.family,
            stem=path.stem,
            steps=done,
            started=self.started,
            prediction=self._prediction,
        )
        if loras := [lora.identity for lora in self._plan.loras]:
            metadata[TRAINED_WITH] = json.dumps(loras)
        tensors = slider_tensors(network, self._plan.family, DTYPES[self._settings.save.precision])
        if key := not_finite(tensors.items()):
            raise InputError(
                f"{path}: {key} contains NaN or infinite values in save.precision {self._settings.save.precision}, so it is not saved: "
                "continue with --resume, with save.precision float32 or a lower train.lr."
            )
        save_slider(path, tensors, metadata, self._plan.family)
        for earlier in self._replaced:
            if earlier != path:
                remove(earlier)
        self._replaced = []

    def save_picture(self, suffix: str, picture: Image.Image) -> None:
        """Saves the picture beside the slider of that suffix, where web UIs look for it. Raises OSError."""
        path = self.path(suffix).with_suffix(".preview.png")
        with atomic_write(path) as temporary:
            picture.save(temporary, format="PNG")
        self.shown = [path]

    def save_page(self, suffix: str, page: Page, card: Card | None) -> None:
        """Saves the page beside the slider of that suffix, and the card in the slider's file. Raises OSError."""
        path = self.path(suffix)
        write_page(path.with_suffix(".html"), page)
        self.shown.append(path.with_suffix(".html"))
        if card is not None:
            keep_card(path, card)


class NoOutputs(Outputs):
    """Of a process that leaves the writing to the first one."""

    def begin(self, done: int) -> None:
        pass

    def save(self, suffix: str, done: int, tensors: dict, network: AdaptorNetwork) -> dict[str, OSError]:
        return {}


@contextmanager
def _noted(failures: dict[str, OSError], what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        failures[what] = error


def reasons(failures: dict[str, OSError]) -> str:
    """`the checkpoint and the slider could not be saved (No space left on device)`"""
    errors = dict.fromkeys(error.strerror or str(error) for error in failures.values())
    return f"{' and '.join(failures)} could not be saved ({'; '.join(errors)})"


def training_time() -> float:
    """The start of training for the metadata, in seconds since 1970. SOURCE_DATE_EPOCH overrides it for reproducible files."""
    return float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
