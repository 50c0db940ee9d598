"""The parts of Stable Diffusion 1 and 2 as their config.json files describe them, for single files without JSON files at hand."""

from sliders.models.sd.unet import SD1_UNET, SD2_UNET

SD_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
}
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
