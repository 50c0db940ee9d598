"""A narrow SDXL with random weights: SDXL's topology and module names, small enough for a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from sliders.models.diffusers_unet.narrow import build_scheduler, build_vae, text_config
from sliders.models.diffusers_unet.tokenizer import END, build_tokenizer, clip_vocabulary
from sliders.models.seeded import seeded


@dataclass(frozen=True)
class NarrowSDXL:
    """Widths and depths; SDXL-base's are in the comments."""

    block_out_channels: tuple[int, int, int] = (32, 32, 64)  # (320, 640, 1280)
    transformer_layers_per_block: tuple[int, int, int] = (1, 1, 2)  # (1, 2, 10); the first is unused
    attention_head_dim: tuple[int, int, int] = (1, 2, 4)  # (5, 10, 20); in spite of its name, the number of heads
    unet_norm_groups: int = 8  # 32
    addition_time_embed_dim: int = 16  # 256
    sample_size: int = 16  # 128, the side of the latents; the image's is 8 times as long
    vae_block_out_channels: tuple[int, int, int, int] = (8, 16, 16, 16)  # (128, 256, 512, 512)
    vae_norm_groups: int = 4  # 32
    text_hidden_sizes: tuple[int, int] = (32, 32)  # (768, 1280)
    text_layers: tuple[int, int] = (2, 2)  # (12, 32)
    text_heads: tuple[int, int] = (2, 2)  # (12, 20)
    text_projection_dim: int = 32  # 1280, the size of the pooled embedding

    @property
    def cross_attention_dim(self) -> int:
        return sum(self.text_hidden_sizes)


def build_narrow_sdxl(
    widths: NarrowSDXL = NarrowSDXL(), words: Sequence[str] = (), seed: int = 0
) -> StableDiffusionXLPipeline:
    """Builds a pipeline on the CPU in float32. Its weights depend on `seed` alone; global generators do not change.

    Each of `words` is one token, other text one per byte. Raises ValueError for a word with anything but letters.
    """
    vocab, merges = clip_vocabulary(words)
    with seeded(seed):
        unet = build_unet(widths)
        vae = build_sdxl_vae(widths)
        text_encoder, text_encoder_2 = build_text_encoders(widths, vocab)
    return StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        text_encoder_2=text_encoder_2.eval(),
        tokenizer=build_tokenizer(vocab, merges, pad_token=END),
        tokenizer_2=build_tokenizer(vocab, merges, pad_token="!"),
        unet=unet.eval(),
        scheduler=build_scheduler(),
        add_watermarker=False,
    )


def build_unet(widths: NarrowSDXL) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=widths.sample_size,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=widths.block_out_channels,
        layers_per_block=2,
        norm_num_groups=widths.unet_norm_groups,
        cross_attention_dim=widths.cross_attention_dim,
        transformer_layers_per_block=widths.transformer_layers_per_block,
        attention_head_dim=widths.attention_head_dim,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=widths.addition_time_embed_dim,
        # six time ids (original size, crop, target size), each embedded, next to the pooled text
        projection_class_embeddings_input_dim=6 * widths.addition_time_embed_dim + widths.text_projection_dim,
    )


def build_sdxl_vae(widths: NarrowSDXL) -> AutoencoderKL:
    return build_vae(widths.vae_block_out_channels, widths.vae_norm_groups, widths.sample_size, scaling_factor=0.13025)


def build_text_encoders(widths: NarrowSDXL, vocab: dict[str, int]) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    sizes = zip(widths.text_hidden_sizes, widths.text_layers, widths.text_heads, strict=True)
    first, second = ((vocab, *size, widths.text_projection_dim) for size in sizes)
    return (
        CLIPTextModel(text_config(*first, "quick_gelu", END)),
        CLIPTextModelWithProjection(text_config(*second, "gelu", "!")),
    )
