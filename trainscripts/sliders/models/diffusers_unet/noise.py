"""What noise a model was trained with, by what its files and the settings state. What the objective does not cover is refused."""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from sliders.config.schema import PretrainedModel
from sliders.models.folders import Weights
from sliders.models.objective import EPSILON, V_PREDICTION, Objective
from sliders.system.errors import InputError, either, first_line

TIMESTEPS = 1000
BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")  # those that every sampler knows
SCHEDULERS = (  # in all of them x_t = √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε, with ᾱ from the config's betas
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler",
    "UniPCMultistepScheduler", "SASolverScheduler", "LCMScheduler", "TCDScheduler",
)  # fmt: skip
ALLOWED = (  # values of a scheduler's config, besides none
    ("prediction_type", (EPSILON, V_PREDICTION)),
    ("num_train_timesteps", (TIMESTEPS,)),
    ("use_flow_sigmas", (False,)),
    ("sigma_min", ()),
    ("sigma_max", ()),
    ("timestep_type", ("discrete",)),
    ("variance_type", ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")),
)
NAMES = {  # of predictions in metadata
    EPSILON: ("epsilon", "eps", "noise"),
    V_PREDICTION: ("v", "v_pred", "vpred", "v_prediction", "velocity"),
}
TRUE = "true|1|yes"
STATES_V = {  # {key of metadata: values that state v, as a regular expression}
    "ss_v_parameterization": TRUE, "modelspec.architecture": ".*-768-v", "ss_base_model_version": ".*_v",
}  # fmt: skip
PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "ss_prediction_type", "prediction_type")
OTHER_PROCESS = {  # how keys of other noise processes begin: what they mean
    "edm_": "EDM's noise, as Playground 2.5 and CosXL have it",
    "sigma_m": "EDM's noise",
    "flow_": "flow matching",
}
BUFFERS = ("alphas_cumprod", "betas", "denoiser.sigmas", "model_sampling.sigmas")  # the schedule itself
REMEDY = "choose a model that predicts noise or v under the noise of Stable Diffusion"


@dataclass(frozen=True)
class Statement:
    """What a single file's keys and metadata say. None: nothing. prediction: of Objective. places: where it stands."""

    prediction: str | None = None
    zero_snr: bool | None = None
    places: tuple[str, ...] = ()
    alphas_cumprod: Tensor | None = None  # [1000] float32, descending


def read_scheduler(config: Mapping, place: str) -> SchedulerMixin:
    """The scheduler of a scheduler_config.json. Raises InputError if a model trained with it has other noise.

    place: how the sentence begins.
    """
    name = str(config.get("_class_name"))
    if name not in SCHEDULERS:
        raise InputError(f"{place}: {name} is not the noise that sliders are trained with: {REMEDY}.")
    try:
        scheduler = getattr(diffusers, name).from_config(dict(config))
    except Exception as error:  # wrong values of any key
        raise InputError(f"{place} cannot be read as a {name} ({first_line(error)}): {REMEDY}.") from error
    found = dict(scheduler.config)
    betas = () if found.get("trained_betas") is not None else (("beta_schedule", BETA_SCHEDULES),)
    for key, allowed in (*ALLOWED, *betas):
        if found.get(key) not in (*allowed, None):
            known = f"only {either(map(json.dumps, allowed))}" if allowed else "only null"
            raise InputError(f"{place}: {key}: {found[key]} is not supported, {known}: {REMEDY}.")
    _check_betas(found, place)
    return scheduler


def _check_betas(config: Mapping, place: str) -> None:
    betas = config.get("trained_betas")
    if betas is not None and len(betas) != TIMESTEPS:
        raise InputError(f"{place}: trained_betas has {len(betas)} values, not {TIMESTEPS}: {REMEDY}.")
    values = list(betas) if betas is not None else [config["beta_start"], config["beta_end"]]
    if not all(0 < beta < 1 for beta in values):
        raise InputError(f"{place}: its betas are not all between 0 and 1: {REMEDY}.")


def read_statement(weights: Weights, place: str) -> Statement:
    """Raises InputError for other noise processes, and if statements contradict each other."""
    stored = weights.stored
    for beginning, meaning in OTHER_PROCESS.items():
        if key := next((k for k in stored if k.startswith(beginning)), None):
            raise InputError(f"{place} states {meaning}, by its key {key}: {REMEDY}.")
    metadata = {key: value for file in weights.files for key, value in file.metadata.items()}
    said = _predictions(metadata, place)
    if "v_pred" in stored:
        said["its key v_pred"] = V_PREDICTION
    if len(set(said.values())) > 1:
        first, second = (next((p, v) for p, v in said.items() if v == value) for value in dict.fromkeys(said.values()))
        raise InputError(
            f"{place} contradicts itself: {first[0]} says {first[1]}, {second[0]} says {second[1]}: correct the file, or choose another."
        )
    zero_snr = "ztsnr" in stored or bool(re.fullmatch(TRUE, metadata.get("ss_zero_terminal_snr", "").strip().lower()))
    alphas_cumprod = _stored_alphas_cumprod(weights, place)
    return Statement(next(iter(said.values()), None), zero_snr or None, tuple(said), alphas_cumprod)


def _predictions(metadata: Mapping[str, str], place: str) -> dict[str, str]:
    """{where it stands: prediction} of a file's metadata."""
    said = {}
    for key in PREDICTION_KEYS:
        if (value := metadata.get(key, "").strip().lower().replace("-", "_")) in ("", "none", "null", "unknown"):
            continue
        found = next((prediction for prediction, names in NAMES.items() if value in names), None)
        if found is None:
            raise InputError(f"{place}: its metadata states {key}: {metadata[key]}, which is not supported: {REMEDY}.")
        said[f"its metadata ({key}: {metadata[key]})"] = found
    architecture = metadata.get("modelspec.architecture", "").lower()
    if architecture.endswith("-edm") or "flow" in architecture:
        raise InputError(
            f"{place}: its metadata states modelspec.architecture: {architecture}, another noise: {REMEDY}."
        )
    stating = [key for key, values in STATES_V.items() if re.fullmatch(values, metadata.get(key, "").strip().lower())]
    return said | {f"its metadata ({key}: {metadata[key]})": V_PREDICTION for key in stating}


def _stored_alphas_cumprod(weights: Weights, place: str) -> Tensor | None:
    """ᾱ as a file's buffers state it, [1000] float32."""
    for key in BUFFERS:
        if key not in weights.stored:
            continue
        values = weights.read([key])[key].float().flatten()
        if len(values) != TIMESTEPS:
            raise InputError(f"{place}: its {key} has {len(values)} values, not {TIMESTEPS}: {REMEDY}.")
        if key == "betas":
            return (1 - values).cumprod(0)
        if key.endswith("sigmas"):
            return (1 / (1 + values.sort().values ** 2)).float()
        return values
    return None


def find_noise(
    settings: PretrainedModel, scheduler: SchedulerMixin, own: bool, statement: Statement, place: str
) -> tuple[Objective, SchedulerMixin, str | None]:
    """Returns the objective of training, a scheduler that samples accordingly, and a note if the settings overrule the model.

    scheduler: the model's own, or that of a single file's JSON files, which counts where the file and the settings state
    nothing. Raises InputError if the settings deny that the model predicts v, if noise is to be predicted under zero
    terminal SNR, or if the file contains another schedule.
    """
    config = dict(scheduler.config)
    stated = statement.prediction or (config["prediction_type"] if own else None)
    prediction = stated or config["prediction_type"]
    where = statement.places[0] if statement.prediction else "scheduler/scheduler_config.json"
    if settings.v_pred is False and stated == V_PREDICTION:
        raise InputError(
            f"pretrained_model.v_pred: false, but {settings.name_or_path} is a v-prediction model, by {where}: remove the key or "
            "set it to true."
        )
    note = None
    if settings.v_pred is not None:
        prediction = V_PREDICTION if settings.v_pred else EPSILON
        if stated not in (None, prediction):
            note = f"pretrained_model.v_pred: true counts, although the model predicts noise by {where}."
    zero_snr = statement.zero_snr
    if zero_snr is None:  # a file that states its prediction by a key would also state this
        zero_snr = "its key v_pred" not in statement.places and bool(config.get("rescale_betas_zero_snr"))
    objective, zero_snr = _objective(config, prediction, zero_snr, statement.alphas_cumprod, place)
    if zero_snr and prediction == EPSILON:
        raise InputError(
            f"{place} states zero terminal SNR, under which noise cannot be predicted, but not v-prediction: set "
            "pretrained_model.v_pred: true if it is a v-prediction model, or choose another model."
        )
    return objective, _sampling_scheduler(scheduler, prediction, zero_snr), note


def _objective(
    config: Mapping, prediction: str, zero_snr: bool, stored: Tensor | None, place: str
) -> tuple[Objective, bool]:
    """The objective, and whether its terminal SNR is zero, which a file's own ᾱ, [1000], may also state."""
    plain, rescaled = (Objective.from_scheduler_config(dict(config), prediction, zero) for zero in (False, True))
    if stored is not None and not _alike(stored, plain.alphas.square()):
        if not _alike(stored, rescaled.alphas.square()):
            raise InputError(
                f"{place} contains a noise schedule of its own, which differs from its scheduler's: {REMEDY}."
            )
        zero_snr = True
    return (rescaled if zero_snr else plain), zero_snr


def _alike(a: Tensor, b: Tensor) -> bool:
    """Up to half precision."""
    return torch.allclose(a, b, rtol=5e-3, atol=5e-4)


def _sampling_scheduler(scheduler: SchedulerMixin, prediction: str, zero_snr: bool) -> SchedulerMixin:
    """The model's scheduler with what a single file or the settings state about the model."""
    stated = {"prediction_type": prediction}
    if zero_snr:  # sampling must start at the last timestep, where nothing is left of the image
        stated |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" not in inspect.signature(type(scheduler)).parameters:  # PNDM, for example
            return diffusers.DDIMScheduler.from_config(scheduler.config, **stated, clip_sample=False)
    elif scheduler.config.get("rescale_betas_zero_snr"):
        stated["rescale_betas_zero_snr"] = False
    return type(scheduler).from_config(scheduler.config, **stated)
