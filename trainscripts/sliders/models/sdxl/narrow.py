"""A narrow SDXL with random weights: SDXL's topology and module names, small enough for a CPU."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

START, END, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
CONTEXT_LENGTH = 77


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
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed every GPU, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(seed)
        unet = build_unet(widths)
        vae = build_vae(widths)
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


def build_vae(widths: NarrowSDXL) -> AutoencoderKL:
    blocks = len(widths.vae_block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=widths.vae_block_out_channels,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=widths.vae_norm_groups,
        sample_size=widths.sample_size * 2 ** (blocks - 1),
        scaling_factor=0.13025,
        force_upcast=True,
    )


def build_text_encoders(widths: NarrowSDXL, vocab: dict[str, int]) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    def config(encoder: int, hidden_act: str, pad_token: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=widths.text_hidden_sizes[encoder],
            intermediate_size=4 * widths.text_hidden_sizes[encoder],
            num_hidden_layers=widths.text_layers[encoder],
            num_attention_heads=widths.text_heads[encoder],
            max_position_embeddings=CONTEXT_LENGTH,
            projection_dim=widths.text_projection_dim,
            hidden_act=hidden_act,
            bos_token_id=vocab[START],
            eos_token_id=vocab[END],
            pad_token_id=vocab[pad_token],
        )

    return CLIPTextModel(config(0, "quick_gelu", END)), CLIPTextModelWithProjection(config(1, "gelu", "!"))


def build_scheduler() -> DDIMScheduler:
    """SDXL-base's scheduler config, for a model that predicts the noise."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
    )


def build_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], pad_token: str) -> CLIPTokenizer:
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=pad_token,
        model_max_length=CONTEXT_LENGTH,
    )


def clip_vocabulary(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns vocabulary {token: id} and merges of a byte-level CLIP tokenizer in which each of `words` is one token.

    Ids are in CLIP's order: 256 bytes, 256 bytes that end a word, merged tokens, start and end of text. Raises
    ValueError for a word with anything but letters.
    """
    symbols = byte_symbols()
    merges: list[tuple[str, str]] = []
    for word in words:
        text = unicodedata.normalize("NFC", word).lower()
        if not text.isalpha():
            raise ValueError(
                f"{word!r} cannot be one token, because CLIP splits words at everything but letters: use letters only."
            )
        pieces = [symbols[byte] for byte in text.encode("utf-8")]
        pieces[-1] += END_OF_WORD
        pieces = _merged(pieces, merges)
        # new merges rank last, so they do not change how earlier words are merged
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _merged(pieces, merges)
    ends = [symbol + END_OF_WORD for symbol in symbols.values()]
    tokens = [*symbols.values(), *ends, *("".join(pair) for pair in merges), START, END]
    # two merges can make the same token ("r"+"ed", "re"+"d"), and ids must have no gaps
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def _merged(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of one word: merges the pair of the lowest rank, everywhere, until no pair is left."""
    while pairs := set(pairwise(pieces)) & set(merges):
        first = min(pairs, key=merges.index)
        merged: list[str] = []
        position = 0
        while position < len(pieces):
            width = 2 if tuple(pieces[position : position + 2]) == first else 1
            merged.append("".join(pieces[position : position + width]))
            position += width
        pieces = merged
    return pieces


def byte_symbols() -> dict[int, str]:
    """{byte: the printable character that represents it in byte-level BPE}, beginning with "!", CLIP's id 0."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
