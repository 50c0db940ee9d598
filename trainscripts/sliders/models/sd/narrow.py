"""A narrow Stable Diffusion 1 or 2 with random weights: the topology and module names, small enough for a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from sliders.models.diffusers_unet.narrow import build_scheduler, build_vae, text_config
from sliders.models.diffusers_unet.tokenizer import END, build_tokenizer, clip_vocabulary
from sliders.models.objective import EPSILON, V_PREDICTION
from sliders.models.seeded import seeded

BLOCKS = {  # what all sizes have in common
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
}


@dataclass(frozen=True)
class NarrowSD:
    """Widths and depths; in the comments those of SD 1, and those of SD 2 where they differ."""

    block_out_channels: tuple[int, int, int, int] = (16, 32, 64, 64)  # (320, 640, 1280, 1280)
    heads: int = 2  # 8
    heads_v2: tuple[int, int, int, int] = (1, 1, 2, 2)  # (5, 10, 20, 20)
    unet_norm_groups: int = 8  # 32
    sample_size: int = 16  # 64; 96: the side of the latents; the image's is 8 times as long
    vae_block_out_channels: tuple[int, int, int, int] = (8, 16, 16, 16)  # (128, 256, 512, 512)
    vae_norm_groups: int = 4  # 32
    text_hidden_size: int = 32  # 768; 1024
    text_layers: int = 2  # 12; 23
    text_heads: int = 2  # 12; 16


def build_narrow_sd(
    widths: NarrowSD = NarrowSD(), v2: bool = False, words: Sequence[str] = (), seed: int = 0
) -> StableDiffusionPipeline:
    """Builds a pipeline on the CPU in float32, for v2 with v-prediction. Its weights depend on `seed` alone.

    Each of `words` is one token, other text one per byte. Raises ValueError for a word with anything but letters.
    """
    vocab, merges = clip_vocabulary(words)
    pad_token = "!" if v2 else END
    sizes = (vocab, widths.text_hidden_size, widths.text_layers, widths.text_heads, widths.text_hidden_size)
    with seeded(seed):
        unet = build_unet(widths, v2)
        vae = build_vae(widths.vae_block_out_channels, widths.vae_norm_groups, widths.sample_size, 0.18215)
        text_encoder = CLIPTextModel(text_config(*sizes, "gelu" if v2 else "quick_gelu", pad_token))
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=build_tokenizer(vocab, merges, pad_token),
        unet=unet.eval(),
        scheduler=build_scheduler(V_PREDICTION if v2 else EPSILON),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_unet(widths: NarrowSD, v2: bool = False) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **BLOCKS,
        sample_size=widths.sample_size,
        block_out_channels=widths.block_out_channels,
        norm_num_groups=widths.unet_norm_groups,
        cross_attention_dim=widths.text_hidden_size,
        attention_head_dim=widths.heads_v2 if v2 else widths.heads,
        use_linear_projection=v2,
    )
