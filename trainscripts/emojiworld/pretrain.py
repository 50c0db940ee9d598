"""Trains a narrow SDXL on the emoji world from scratch, by the clock, on one GPU. Writes a diffusers folder in fp16.

    uv run trainscripts/emojiworld/pretrain.py --out trainscripts/emojiworld/model --seconds 440

It stops by itself: `--seconds` are counted from the start of training to the written folder, reading and imports apart.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from sliders.models.objective import Objective
from sliders.models.sdxl.narrow import NarrowSDXL
from sliders.system.errors import InputError
from torch import Tensor
from worlds.training import (
    CAPTION_DROPOUT,
    Seconds,
    autocast,
    build_pipeline,
    encode_pictures,
    encode_prompts,
    fit,
    save,
    time_ids,
    tokenize,
)

from emojiworld.pictures import PICTURES, Pictures, load_pictures
from emojiworld.world import IMAGE_SIZE, all_captions, caption_index, render, sample_scenes, words

# 87 MiB of weights in fp16: as many as a GPU trains in this time, because so small a network's kernels hardly fill one.
LARGE = NarrowSDXL(
    block_out_channels=(96, 192, 288),
    transformer_layers_per_block=(1, 1, 1),
    attention_head_dim=(2, 4, 6),
    unet_norm_groups=32,
    addition_time_embed_dim=64,
    sample_size=IMAGE_SIZE // 8,
    vae_block_out_channels=(32, 64, 96, 128),
    vae_norm_groups=8,
    text_hidden_sizes=(96, 160),
    text_layers=(3, 3),
    text_heads=(3, 5),
    text_projection_dim=128,
)
WIDTHS = {
    "large": LARGE,
    # at most 12 MiB, which can be tracked
    "small": replace(
        LARGE,
        block_out_channels=(32, 56, 96),
        attention_head_dim=(1, 2, 3),
        unet_norm_groups=8,
        addition_time_embed_dim=32,
        vae_block_out_channels=(16, 32, 48, 64),
        text_hidden_sizes=(40, 64),
        text_heads=(2, 4),
        text_projection_dim=48,
    ),
    # for tests
    "tiny": NarrowSDXL(),
}
VAE_SHARE = 0.3  # of the time
ENCODING_SHARE = 0.07
SAVING_SECONDS = 10.0  # kept back at the end, at most a tenth of the time
GAMMA = 5.0  # caps the signal-to-noise ratio in the UNet's loss (Hang et al. 2023, arXiv:2303.09556)


def main() -> int:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    try:
        pictures = load_pictures(arguments.pictures).to(device)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    started = time.time()
    pipe = build_pipeline(WIDTHS[arguments.size], words(pictures), arguments.seed, device)
    train_vae(pipe, pictures, VAE_SHARE * arguments.seconds, min(arguments.batch_size, 64))
    until = time.time() + ENCODING_SHARE * arguments.seconds
    moments, prompts = encode_world(pipe, pictures, until, arguments.scenes, arguments.batch_size)
    left = arguments.seconds - (time.time() - started) - min(SAVING_SECONDS, 0.1 * arguments.seconds)
    train_denoiser(pipe, all_captions(pictures), moments, prompts, left, arguments.batch_size)
    save(pipe, arguments.out)
    print(f"wrote {arguments.out} after {time.time() - started:.0f} s", flush=True)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write")
    add("--seconds", type=float, default=440.0, help="time for everything, at most a minute less than a call may take")
    add("--size", choices=WIDTHS, default="large", help="of the model")
    add("--batch_size", type=int, default=512, help="for the UNet; the VAE's is at most 64")
    add("--scenes", type=int, default=400_000, help="number of scenes to encode for training the UNet, at most")
    add("--pictures", type=Path, default=PICTURES, help="the archive that get_pictures.py wrote")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def train_vae(pipe: StableDiffusionXLPipeline, pictures: Pictures, seconds: float, batch_size: int) -> None:
    """Trains the VAE on scenes drawn as it trains: absolute and squared error, the same of edges, and a small weight on KL."""
    vae = pipe.vae.train()

    def loss() -> Tensor:
        pixels = render(sample_scenes(pictures, batch_size), pictures) * 2 - 1
        with autocast(vae.device):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        error = decoded.float() - pixels
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()  # per latent
        return error.square().mean() + 0.3 * error.abs().mean() + 0.3 * edges + 1e-5 * kl

    steps = fit("vae", vae.parameters(), loss, Seconds(seconds), peak_lr=1e-3)
    print(f"vae: {steps} steps of {batch_size}", flush=True)
    vae.eval().requires_grad_(False)


def encode_world(
    pipe: StableDiffusionXLPipeline, pictures: Pictures, until: float, count: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Moments [N, 8, 16, 16] fp16 and caption indices [N] int64 of scenes: `count`, or as many as there is time for."""

    def draw() -> tuple[Tensor, Tensor]:
        scenes = sample_scenes(pictures, batch_size)
        return render(scenes, pictures), caption_index(scenes)

    def more(batches: int) -> bool:
        if batches % 8 == 0 and pipe.vae.device.type == "cuda":
            torch.cuda.synchronize()
        return batches == 0 or (batches * batch_size < count and time.time() < until)

    return encode_pictures(pipe, draw, more, torch.float16)


def train_denoiser(
    pipe: StableDiffusionXLPipeline,
    captions: list[str],
    moments: Tensor,
    prompts: Tensor,
    seconds: float,
    batch_size: int,
) -> None:
    """Trains the UNet and both text encoders together to predict the noise."""
    unet, device = pipe.unet.train(), pipe.unet.device
    input_ids = [tokenize(tokenizer, [*captions, ""]).to(device) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)]
    objective = Objective.variance_preserving(pipe.scheduler.alphas_cumprod).to(device)
    added = time_ids(IMAGE_SIZE, batch_size, device)
    count, scaling_factor = len(objective.alphas), pipe.vae.config.scaling_factor
    strata = torch.arange(batch_size, device=device)

    def loss() -> Tensor:
        rows = torch.randint(len(moments), (batch_size,), device=device)
        latents = DiagonalGaussianDistribution(moments[rows].float()).sample() * scaling_factor
        dropped = torch.rand(batch_size, device=device) < CAPTION_DROPOUT
        chosen = torch.where(dropped, len(captions), prompts[rows])
        # one timestep from each of equal parts of the range: the batch's mean varies less
        places = (strata + torch.rand(batch_size, device=device)) / batch_size
        timesteps = (places * count).long().clamp(max=count - 1)
        noise = torch.randn_like(latents)
        noisy = objective.add_noise(latents, noise, timesteps)
        with autocast(device):
            embeddings, pooled = encode_prompts(pipe, [ids[chosen] for ids in input_ids])
            prediction = unet(
                noisy,
                timesteps,
                encoder_hidden_states=embeddings,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": added},
                return_dict=False,
            )[0]
        errors = (prediction.float() - noise).square().mean((1, 2, 3))
        return (errors * objective.min_snr_weight(timesteps, GAMMA)).mean()

    modules = (unet, pipe.text_encoder, pipe.text_encoder_2)
    parameters = (parameter for module in modules for parameter in module.parameters())
    steps = fit("unet", parameters, loss, Seconds(seconds), peak_lr=6e-4)
    print(f"unet: {steps} steps of {batch_size}", flush=True)
    unet.eval()


if __name__ == "__main__":
    sys.exit(main())
