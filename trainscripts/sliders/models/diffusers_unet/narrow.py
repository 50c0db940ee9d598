"""Parts of narrow models with random weights, small enough for a CPU."""

from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPTextConfig

from sliders.models.diffusers_unet.tokenizer import CONTEXT_LENGTH, END, START
from sliders.models.objective import EPSILON


def build_vae(
    block_out_channels: tuple[int, ...], norm_groups: int, latent_size: int, scaling_factor: float
) -> AutoencoderKL:
    blocks = len(block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=block_out_channels,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=norm_groups,
        sample_size=latent_size * 2 ** (blocks - 1),
        scaling_factor=scaling_factor,
        force_upcast=True,
    )


def text_config(
    vocab: dict[str, int], hidden_size: int, layers: int, heads: int, projection_dim: int, hidden_act: str, pad_token: str
) -> CLIPTextConfig:  # fmt: skip
    return CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT_LENGTH,
        projection_dim=projection_dim,
        hidden_act=hidden_act,
        bos_token_id=vocab[START],
        eos_token_id=vocab[END],
        pad_token_id=vocab[pad_token],
    )


def build_scheduler(prediction_type: str = EPSILON) -> DDIMScheduler:
    """The noise of Stable Diffusion 1, 2 and XL, in the form of SDXL-base's scheduler config."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )
