"""SDXL-base's parts as their config.json files describe them, for single files whose JSON files are not at hand."""

from sliders.models.sdxl.unet import SDXL_BASE_UNET

SDXL_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
}
OPEN_CLIP_G = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
BASE_PARTS = {"unet": SDXL_BASE_UNET, "vae": SDXL_VAE, "text_encoder": CLIP_L, "text_encoder_2": OPEN_CLIP_G}
