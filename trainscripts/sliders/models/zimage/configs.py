"""Z-Image's parts as their config.json files describe them: the base model and Turbo differ only in the scheduler's shift."""

from sliders.models.flow.qwen import TEXT_WIDTH

TRANSFORMER = {
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 2560,  # of the last hidden state but one of Qwen3-4B
    "siglip_feat_dim": None,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}
NARROW = {  # the transformer of `tiny`
    **TRANSFORMER,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": TEXT_WIDTH,
    "axes_dims": [8, 4, 4],
}
SHIFT, TURBO_SHIFT = 6.0, 3.0  # of the base model's and Turbo's samplers
SCHEDULER = {"num_train_timesteps": 1000, "shift": SHIFT, "use_dynamic_shifting": False}
