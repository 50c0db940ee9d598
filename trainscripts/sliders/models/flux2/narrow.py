"""A narrow FLUX.2 [klein] with random weights: the module names and the latents of the 4B model, small enough for a CPU."""

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from sliders.models.flux2.configs import SCHEDULER, TRANSFORMER
from sliders.models.seeded import seeded

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEXT_WIDTH = 32  # 2560 in Qwen3-4B
TEXT_LAYERS = 28  # 36; the last that is read is the 27th
LATENT_CHANNELS = 32  # as in the full model, so that a latent has its 128 channels
# Qwen3's template for a single turn: without thinking, the answer begins with an empty thought.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def build_narrow_klein(seed: int = 0, distilled: bool = False) -> Flux2KleinPipeline:
    """Builds a pipeline on the CPU in float32. Its weights depend on `seed` alone; global generators do not change."""
    with seeded(seed):
        transformer, vae, text_encoder = build_transformer(), build_vae(), build_text_encoder()
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=build_tokenizer(),
        transformer=transformer.eval(),
        is_distilled=distilled,
    )


def build_transformer() -> Flux2Transformer2DModel:
    narrow = {
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 3 * TEXT_WIDTH,
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    return Flux2Transformer2DModel(**{**TRANSFORMER, **narrow})


def build_vae() -> AutoencoderKLFlux2:
    """Its latents have statistics of their own, unlike those of a new VAE: what leaves them out computes something else."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=64,
    )
    vae.bn.running_mean.copy_(torch.randn_like(vae.bn.running_mean) / 4)
    vae.bn.running_var.copy_(torch.rand_like(vae.bn.running_var) / 4 + 0.1)
    return vae


def build_text_encoder() -> Qwen3ForCausalLM:
    vocabulary = _vocabulary()
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=vocabulary[PAD],
        eos_token_id=vocabulary[END],
    )
    return Qwen3ForCausalLM(config)


def build_tokenizer() -> Qwen2Tokenizer:
    """A token for each byte, and the three special ones that the template needs."""
    tokenizer = Qwen2Tokenizer(
        vocab=_vocabulary(),
        merges=[],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _vocabulary() -> dict[str, int]:
    return {token: index for index, token in enumerate([*sorted(ByteLevel.alphabet()), PAD, START, END])}
