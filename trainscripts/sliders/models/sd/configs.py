"""The parts of Stable Diffusion 1 and 2 as their config.json files describe them, for single files without JSON files at hand."""

from sliders.models.diffusers_unet.configs import CLIP_L, VAE
from sliders.models.sd.narrow import BLOCKS

SD1_UNET = {
    **BLOCKS,
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # in spite of its name, the number of heads; they have 40, 80 and 160 values
}
SD2_UNET = {
    **SD1_UNET,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SD_VAE = {**VAE, "sample_size": 512, "scaling_factor": 0.18215}
OPEN_CLIP_H = {
    **CLIP_L,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # of 24: the last is not used
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
SD1_PARTS = {"unet": SD1_UNET, "vae": SD_VAE, "text_encoder": CLIP_L}
SD2_PARTS = {"unet": SD2_UNET, "vae": SD_VAE, "text_encoder": OPEN_CLIP_H}
