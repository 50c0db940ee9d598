"""The metadata of a slider file: what web UIs show, and how the slider was made."""

import json
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from sliders import __version__
from sliders.config.schema import Network, Settings
from sliders.data.contract import Checked
from sliders.models import VERSIONS, Family
from sliders.models.objective import EPSILON, V_PREDICTION

TRAINED_ON = "ss_base_model_version"  # as kohya's scripts and this project write it
# as kohya's scripts write it; the specification has no word for velocities
PREDICTED = {EPSILON: {"modelspec.prediction_type": "epsilon"}, V_PREDICTION: {"modelspec.prediction_type": "v"}}


def slider_metadata(
    settings: Settings, data: Checked, family: Family, *, stem: str, steps: int, started: float, prediction: str
) -> dict[str, str]:
    """What web UIs show, and how the slider was made: strings only, JSON where a value has parts."""
    train = settings.train
    resolution = max(p.resolution for p in settings.prompts)
    found = {
        **family.metadata(prediction),
        **file_metadata(stem, settings.network, started),
        "ss_sd_model_name": model_name(settings),
        "ss_training_started_at": started,
        "ss_steps": steps,
        "ss_max_train_steps": train.iterations,
        "ss_learning_rate": train.lr,
        "ss_optimizer": train.optimizer,
        "ss_lr_scheduler": train.lr_scheduler,
        "ss_seed": train.seed,
        "ss_mixed_precision": train.precision,
        "ss_resolution": f"({resolution}, {resolution})",
        **data.metadata(settings.prompts),
        "modelspec.resolution": f"{resolution}x{resolution}",
        **PREDICTED.get(prediction, {}),
        "sliders.prompts": [p.model_dump() for p in settings.prompts],
        "sliders.config": _shareable(settings),
        "sliders.versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "safetensors")},
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def file_metadata(stem: str, network: Network, made: float) -> dict[str, str]:
    """What every slider file states. made: seconds since the epoch."""
    return {
        **network_metadata(network),
        "ss_output_name": stem,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": stem,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(made)),
        "sliders.version": __version__,
    }


def trained_scales(metadata: Mapping[str, str]) -> list[float]:
    """The multipliers at which a slider was trained, ascending, by its file's metadata; none if they do not say."""
    folders = json.loads(metadata.get("sliders.folders", "{}"))
    return sorted(folders.values() or json.loads(metadata.get("sliders.scales", "[]")))


def stated_version(metadata: dict[str, str]) -> Family | None:
    """The version of models that a file's metadata say it is for, None if they say none that is known here."""
    stated = metadata.get(TRAINED_ON, "")
    return next((family for family in VERSIONS if stated.startswith(version_name(family))), None)


def version_name(family: Family) -> str:
    """`sdxl`, `sd_v1` or `sd_v2`, with which TRAINED_ON begins."""
    return family.metadata(None)[TRAINED_ON].partition("_base")[0]


def network_metadata(network: Network) -> dict[str, str]:
    """Module, rank and alpha as kohya's scripts write them, which train LyCORIS' algorithms through `lycoris.kohya`.

    Where layers differ, they say "Dynamic", as kohya's resizing script does: each layer's own are those in the file.
    """
    found = {"ss_network_module": "networks.lora", "ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}
    if len(network.ranks) == 1:
        found |= {"ss_network_dim": str(network.rank), "ss_network_alpha": str(network.alpha)}
    if network.algo != "lora":
        arguments = {"algo": network.algo, "conv_dim": str(network.rank), "conv_alpha": str(network.alpha)}
        if network.factor is not None:
            arguments["factor"] = str(network.factor)
        found |= {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(arguments)}
    return found


def _shareable(settings: Settings) -> dict:
    """The settings without where things lie on the user's disk: files like these are uploaded."""
    config = settings.model_dump(mode="json", include={"pretrained_model", "network", "train", "save", "other"})
    del config["pretrained_model"]["loras"]  # see `sliders.loras`
    config["pretrained_model"] = {**config["pretrained_model"], "name_or_path": model_name(settings), "config": None}
    del config["save"]["path"]
    return config


def model_name(settings: Settings) -> str:
    """A hub id as it is, of a path only the last part."""
    name = settings.pretrained_model.name_or_path
    return Path(name).name if Path(name).exists() else name
