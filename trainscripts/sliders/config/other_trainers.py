"""Keys and flags of other trainers' files, and what to use here instead."""

_BATCH = (
    "use batch_size in the prompts file, or --batch_size: the pairs of images in a step; gradients are not accumulated"
)
_EPOCHS = "use train.iterations, or --iterations: the number of steps"
_FROZEN = "leave it out: only the UNet is adapted"
_NOTHING = (
    "leave it out: there is nothing like it here; train.lr and train.max_grad_norm are what makes training calmer"
)
_PROMPTS = "it is a key of each prompt set, in the prompts file"
_IMAGES = "use --folder_main and --folders: one folder of images per scale"
_CAPTIONS = "leave it out: captions are .txt files beside the images, used as they are; see train.caption_dropout"
_CACHED = "leave it out: images and prompts are always encoded once and kept in memory"
_SIZES = "leave it out: each image is trained in its own proportions, at the resolution in the prompts file"

ELSEWHERE = {  # key in lower case → the remedy
    **dict.fromkeys(("gradient_accumulation_steps", "gradient_accumulation", "accumulation_steps", "grad_accum"), _BATCH),
    "train_batch_size": _BATCH,
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "max_train_epochs", "num_train_epochs"), _EPOCHS),
    **dict.fromkeys(("max_train_steps", "train_steps", "max_steps", "num_steps", "total_steps", "num_iterations"), _EPOCHS),
    **dict.fromkeys(("learning_rate", "unet_lr", "base_lr"), "use train.lr, or --lr"),
    **dict.fromkeys(("text_encoder_lr", "train_text_encoder", "network_train_text_encoder_only", "train_unet",
                     "network_train_unet_only"), _FROZEN),
    **dict.fromkeys(("lr_warmup_steps", "warmup_steps", "lr_warmup", "noise_offset", "network_dropout", "rank_dropout",
                     "module_dropout", "multires_noise_iterations", "ip_noise_gamma", "scale_weight_norms",
                     "prior_loss_weight", "ema", "use_ema", "ema_config"), _NOTHING),
    **dict.fromkeys(("optimizer_type",), "use train.optimizer"),
    **dict.fromkeys(("weight_decay", "betas", "eps", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon"),
                    "use train.optimizer_args, such as weight_decay=0.01 betas=(0.9,0.99)"),
    **dict.fromkeys(("optimizer_params", "optimizer_kwargs"), "use train.optimizer_args, such as weight_decay=0.01"),
    **dict.fromkeys(("scheduler", "lr_schedule"), "use train.lr_scheduler"),
    **dict.fromkeys(("timestep_sampling", "timestep_type", "timestep_schedule", "content_or_style"), "use train.timestep_bias"),
    **dict.fromkeys(("snr_gamma", "min_snr"), "use train.min_snr_gamma"),
    **dict.fromkeys(("network_dim", "dim", "lora_dim", "lora_rank", "linear", "network_rank"), "use network.rank, or --rank"),
    **dict.fromkeys(("network_alpha", "lora_alpha", "linear_alpha"), "use network.alpha, or --alpha"),
    **dict.fromkeys(("conv", "conv_dim", "conv_rank", "conv_alpha"), "use network.include, whose patterns may have a rank and an alpha"),
    **dict.fromkeys(("network_module", "network_args", "algorithm"), "use network.algo"),
    **dict.fromkeys(("train_method",), "use network.training_method, or --training_method"),
    **dict.fromkeys(("output_name", "job_name", "run_name"), "use save.name, or --name"),
    **dict.fromkeys(("output_dir", "output_path", "save_dir", "save_to", "training_folder"), "use save.path, or --save_path"),
    **dict.fromkeys(("save_every", "save_every_n_steps", "save_steps", "checkpointing_steps", "save_every_n_epochs"),
                    "use save.per_steps, or --per_steps"),
    **dict.fromkeys(("max_step_saves_to_keep", "save_last_n_steps", "checkpoints_total_limit"), "use save.keep"),
    **dict.fromkeys(("save_precision", "save_dtype"), "use save.precision"),
    **dict.fromkeys(("mixed_precision", "dtype", "full_bf16", "full_fp16", "train_dtype"), "use train.precision"),
    **dict.fromkeys(("pretrained_model_name_or_path", "base_model", "model_path", "model_name", "checkpoint", "name_or_file"),
                    "use pretrained_model.name_or_path, or --model"),
    **dict.fromkeys(("v_parameterization", "v_prediction", "is_v_pred", "prediction_type"), "use pretrained_model.v_pred"),
    **dict.fromkeys(("is_v2",), "use pretrained_model.v2"),
    **dict.fromkeys(("resume_from_checkpoint", "network_weights", "resume_from"), "use the flag --resume"),
    **dict.fromkeys(("train_data_dir", "dataset", "datasets", "folder_path", "image_dir", "dataset_config", "data_dir"), _IMAGES),
    **dict.fromkeys(("caption_extension", "caption_ext", "shuffle_caption", "keep_tokens", "caption_dropout_rate",
                     "token_dropout_rate"), _CAPTIONS),
    **dict.fromkeys(("cache_latents", "cache_latents_to_disk", "cache_text_embeddings", "latent_cache_dir", "use_latents",
                     "cache_text_encoder_outputs"), _CACHED),
    **dict.fromkeys(("enable_bucket", "bucket_reso_steps", "min_bucket_reso", "max_bucket_reso", "bucket_no_upscale"), _SIZES),
    **dict.fromkeys(("xformers", "sdpa", "mem_eff_attn", "attention_backend"), "use other.attention"),
    **dict.fromkeys(("clip_gradients", "max_gradient_norm", "grad_clip"), "use train.max_grad_norm"),
    **dict.fromkeys(("sample_every", "sample_every_n_steps", "validation_steps"), "use preview.every"),
    **dict.fromkeys(("sample_prompts", "validation_prompt", "validation_prompts"), "use preview.prompts"),
    **dict.fromkeys(("logging_dir", "log_dir", "log_with", "report_to"),
                    "leave it out: the run's folder has the log for TensorBoard; for wandb use logging.use_wandb"),
    **dict.fromkeys(("batch_size", "resolution"), f"{_PROMPTS}, and there is a flag of that name"),
    **dict.fromkeys(("guidance_scale", "dynamic_resolution", "dynamic_crops", "target", "positive", "neutral", "unconditional",
                     "action"), _PROMPTS),
    "single_image": "leave it out: a step trains on two images, each at a scale of its own",
    "quantization": "use pretrained_model.quantize",
}  # fmt: skip
