"""Keys, values and flags of other trainers, the ancestors included, and of earlier versions: what they mean here.

Values and keys of the ancestors that still work are translated; for others the message says what to use instead.
"""

import importlib.util
from typing import Any, NamedTuple

from pydantic import BaseModel, BeforeValidator

YES, NO = ("yes", "on", "true"), ("no", "off", "false")
PRECISIONS = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
NO_FLOAT16 = {
    "float16": "float16 needs loss scaling to train and is not offered: use bfloat16, or float32 where a card lacks it"
}
NO_ERASE = {"erase": "'erase' means nothing here, since the images say which way a slider goes: use enhance"}
# Keys of network that checkpoints of earlier versions lack. They are part of a run's identity if they are set.
ADDED_TO_NETWORK = ("include", "exclude", "factor")


def spelled(aliases: dict[str, str]) -> BeforeValidator:
    """Ignores case and accepts `aliases`, the short spellings in the original trainers' files."""
    return BeforeValidator(lambda v: aliases.get(v.lower(), v.lower()) if isinstance(v, str) else v)


def switch(on: str, off: str = "off") -> BeforeValidator:
    """Accepts true for `on` and false for `off`, and their synonyms: the original trainers wrote true."""

    def choice(value: Any) -> Any:
        word = str(value).lower()
        return on if word in YES else off if word in NO else value

    return BeforeValidator(choice)


def refused(reasons: dict[str, str]) -> BeforeValidator:
    """Explains why a value of the original trainers is none here: {value: sentence}."""

    def choice(value: Any) -> Any:
        if isinstance(value, str) and value in reasons:
            raise ValueError(reasons[value])
        return value

    return BeforeValidator(choice)


minus_one_is_none = BeforeValidator(lambda v: None if v == -1 else v)  # as LyCORIS writes it


class Meaning(NamedTuple):
    """A key of the fork that, at this `value`, says what `key` of `section` says here as `here`."""

    value: bool
    section: str
    key: str
    here: str
    beside: bool  # whether another value of `key` may stand beside it, which then counts


OLD_KEYS = {  # of the section other
    "lycorisize": Meaning(True, "network", "algo", "glora", beside=False),
    "use_xformers": Meaning(True, "other", "attention", "xformers", beside=True),
    "use_pytorch_SDPA": Meaning(False, "other", "attention", "math", beside=True),
}


def translated(config: BaseModel) -> BaseModel:
    """A `Config` in which keys of today say what `OLD_KEYS` say. Raises ValueError if the two contradict each other."""
    for old, (value, name, key, here, beside) in OLD_KEYS.items():
        section = getattr(config, name)
        now = getattr(section, key)
        if getattr(config.other, old) is not value or now == here:
            continue
        if key not in section.model_fields_set or now == "auto":
            config = config.model_copy(update={name: section.model_copy(update={key: here})})
        elif not beside:
            raise ValueError(
                f"other.{old}: {str(value).lower()} means {name}.{key}: {here}, but {name}.{key} is {now}: remove one of them"
            )
    return config


def without_xformers(other: Any) -> str | None:
    """Takes `use_xformers` out of the raw section `other` if it would have no effect, and then returns a note that says so."""
    asks = isinstance(other, dict) and other.get("use_xformers") is True and other.get("attention") is None
    if not asks or importlib.util.find_spec("xformers") is not None:
        return None
    other["use_xformers"] = False
    return "other.use_xformers: xformers is not installed, so PyTorch's own attention is used, which is as fast."


_ELSEWHERE = {  # remedy → keys, in lower case
    "use batch_size in the prompts file, or --batch_size: the pairs of images in a step; gradients are not accumulated":
        "gradient_accumulation_steps gradient_accumulation accumulation_steps grad_accum train_batch_size",
    "use train.iterations, or --iterations: the number of steps":
        "epochs epoch num_epochs max_train_epochs num_train_epochs max_train_steps train_steps max_steps num_steps "
        "total_steps num_iterations",
    "use train.lr, or --lr": "learning_rate unet_lr base_lr",
    "leave it out: only the UNet is adapted":
        "text_encoder_lr train_text_encoder network_train_text_encoder_only train_unet network_train_unet_only",
    "leave it out: there is nothing like it here; train.lr and train.max_grad_norm are what makes training calmer":
        "lr_warmup_steps warmup_steps lr_warmup noise_offset network_dropout rank_dropout module_dropout "
        "multires_noise_iterations ip_noise_gamma scale_weight_norms prior_loss_weight ema use_ema ema_config",
    "use train.optimizer": "optimizer_type",
    "use train.optimizer_args, such as weight_decay=0.01 betas=(0.9,0.99)":
        "weight_decay betas eps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon",
    "use train.optimizer_args, such as weight_decay=0.01": "optimizer_params optimizer_kwargs",
    "use train.lr_scheduler": "scheduler lr_schedule",
    "use train.timestep_shift": "discrete_flow_shift flow_shift",
    "use train.timestep_bias or train.timestep_shift": "timestep_sampling timestep_type timestep_schedule content_or_style",
    "use train.min_snr_gamma": "snr_gamma min_snr",
    "use network.rank, or --rank": "network_dim dim lora_dim lora_rank linear network_rank",
    "use network.alpha, or --alpha": "network_alpha lora_alpha linear_alpha",
    "use network.include, whose patterns may have a rank and an alpha": "conv conv_dim conv_rank conv_alpha",
    "use network.algo": "network_module network_args algorithm",
    "use network.training_method, or --training_method": "train_method",
    "use save.name, or --name": "output_name job_name run_name",
    "use save.path, or --save_path": "output_dir output_path save_dir save_to training_folder",
    "use save.per_steps, or --per_steps": "save_every save_every_n_steps save_steps checkpointing_steps save_every_n_epochs",
    "use save.keep": "max_step_saves_to_keep save_last_n_steps checkpoints_total_limit",
    "use save.precision": "save_precision save_dtype",
    "use train.precision": "mixed_precision dtype full_bf16 full_fp16 train_dtype",
    "use pretrained_model.name_or_path, or --model":
        "pretrained_model_name_or_path base_model model_path model_name checkpoint name_or_file",
    "use pretrained_model.v_pred": "v_parameterization v_prediction is_v_pred prediction_type",
    "use pretrained_model.v2": "is_v2",
    "use pretrained_model.loras: a list of file and weight": "base_weights base_weights_multiplier lora_path lora_weights",
    "use the flag --resume": "resume_from_checkpoint network_weights resume_from",
    "use --folder_main and --folders: one folder of images per scale":
        "train_data_dir dataset datasets folder_path image_dir dataset_config data_dir",
    "leave it out: captions are .txt files beside the images, used as they are; see train.caption_dropout":
        "caption_extension caption_ext shuffle_caption keep_tokens caption_dropout_rate token_dropout_rate",
    "leave it out: images and prompts are always encoded once and kept in memory":
        "cache_latents cache_latents_to_disk cache_text_embeddings latent_cache_dir use_latents cache_text_encoder_outputs",
    "leave it out: each image is trained in its own proportions, at the resolution in the prompts file":
        "enable_bucket bucket_reso_steps min_bucket_reso max_bucket_reso bucket_no_upscale",
    "use other.attention": "xformers sdpa mem_eff_attn attention_backend",
    "use train.max_grad_norm": "clip_gradients max_gradient_norm grad_clip",
    "use preview.every": "sample_every sample_every_n_steps validation_steps",
    "use preview.prompts": "sample_prompts validation_prompt validation_prompts",
    "leave it out: the run's folder has the log for TensorBoard; for wandb use logging.use_wandb":
        "logging_dir log_dir log_with report_to",
    "it is a key of each prompt set, in the prompts file, and there is a flag of that name": "batch_size resolution",
    "it is a key of each prompt set, in the prompts file":
        "guidance_scale dynamic_resolution dynamic_crops target positive neutral unconditional action",
    "leave it out: a step trains on two images, each at a scale of its own": "single_image",
    "use pretrained_model.quantize": "quantization",
}  # fmt: skip
ELSEWHERE = {key: remedy for remedy, keys in _ELSEWHERE.items() for key in keys.split()}
