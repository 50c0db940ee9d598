"""The samplers that make pictures with a UNet, and the schedulers that cannot."""

import diffusers
from diffusers import SchedulerMixin

from sliders.config.schema import SAMPLERS
from sliders.models.objective import EPSILON, V_PREDICTION
from sliders.system.errors import InputError

MODEL_OPTIONS = (  # scheduler options that belong to the model, not to the sampler
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type", "timestep_spacing", "steps_offset",
)  # fmt: skip


def check_scheduler(scheduler: SchedulerMixin, place: str, remedy: str | None) -> None:
    """Raises InputError, naming `place`, for the scheduler of a model that pictures cannot be sampled from.

    remedy: what to do about one that is not for noise of this kind, given by betas, or not for making pictures. None: another
    one takes its place, so that only what the model predicts must be known.
    """
    config, name = scheduler.config, type(scheduler).__name__
    predicted = config.get("prediction_type", EPSILON)
    if predicted not in (EPSILON, V_PREDICTION):
        raise InputError(
            f"{place}: the model's own scheduler, {name}, says that the model predicts {predicted}, neither noise nor v: choose another "
            "model."
        )
    others = any(word in name for word in ("Flow", "Inverse", "RePaint"))
    foreign = others or "beta_start" not in config or config.get("use_flow_sigmas")
    if foreign and remedy is not None:
        raise InputError(
            f"{place}: the model's own scheduler, {name}, cannot sample from this kind of model: {remedy}."
        )


def as_sampler(scheduler: SchedulerMixin, name: str) -> SchedulerMixin:
    """The sampler `name`, a key of SAMPLERS, for the model whose own scheduler is given.

    Only MODEL_OPTIONS are taken over: any other inherited option could turn the sampler into a different one.
    """
    cls, options, _ = SAMPLERS[name]
    own = {key: value for key, value in scheduler.config.items() if key in MODEL_OPTIONS}
    return getattr(diffusers, cls).from_config(own, **options)
