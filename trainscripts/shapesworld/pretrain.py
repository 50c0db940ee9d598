"""Trains a narrow SDXL on the shapes world from scratch, in minutes on one GPU. Writes a diffusers folder in fp16.

uv run trainscripts/shapesworld/pretrain.py --out trainscripts/shapesworld/model
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from sliders.models.sdxl.narrow import NarrowSDXL
from torch import Tensor
from worlds.training import (
    CAPTION_DROPOUT,
    Pace,
    Steps,
    autocast,
    build_pipeline,
    encode_pictures,
    encode_prompts,
    fit,
    save,
    time_ids,
    tokenize,
)

from shapesworld.world import IMAGE_SIZE, all_captions, caption_index, render, sample_scenes, words

# On a CPU, the number of layers limits the speed of a slider's step, so the transformers are one block deep.
WIDTHS = NarrowSDXL(
    block_out_channels=(48, 80, 128),
    transformer_layers_per_block=(1, 1, 1),
    attention_head_dim=(1, 2, 4),
    unet_norm_groups=16,
    addition_time_embed_dim=32,
    sample_size=IMAGE_SIZE // 8,
    vae_block_out_channels=(16, 32, 48, 64),
    vae_norm_groups=8,
    text_hidden_sizes=(48, 80),
    text_layers=(3, 3),
    text_heads=(2, 4),
    text_projection_dim=64,
)


def main() -> None:
    arguments = parse_arguments()
    pipe = build_pipeline(WIDTHS, words(), arguments.seed, torch.device(arguments.device))
    started = time.time()
    train_vae(pipe, Steps(arguments.vae_steps), min(arguments.batch_size, 64))
    moments, prompts = encode_world(pipe, arguments.scenes, arguments.batch_size)
    train_denoiser(pipe, moments, prompts, arguments.unet_steps, arguments.batch_size)
    save(pipe, arguments.out)
    print(f"wrote {arguments.out} after {time.time() - started:.0f} s", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--vae_steps", type=int, default=3000)
    parser.add_argument("--unet_steps", type=int, default=8000)
    parser.add_argument("--scenes", type=int, default=131_072, help="number of scenes to encode for training the UNet")
    parser.add_argument("--batch_size", type=int, default=256, help="for the UNet; the VAE's is at most 64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def train_vae(pipe: DiffusionPipeline, pace: Pace, batch_size: int) -> None:
    """Trains the VAE: L2 and L1 reconstruction, with a small weight on KL."""
    vae = pipe.vae.train()

    def loss() -> Tensor:
        pixels = render(sample_scenes(batch_size, device=vae.device)) * 2 - 1
        with autocast(vae.device):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()  # per latent
        return F.mse_loss(decoded.float(), pixels) + 0.2 * F.l1_loss(decoded.float(), pixels) + 1e-5 * kl

    fit("vae", vae.parameters(), loss, pace, peak_lr=2e-3)
    vae.eval().requires_grad_(False)


def encode_world(pipe: StableDiffusionXLPipeline, count: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Moments [count, 8, 16, 16] fp32 and caption indices [count] int64, with count rounded down to whole batches."""

    def draw() -> tuple[Tensor, Tensor]:
        scenes = sample_scenes(batch_size, device=pipe.vae.device)
        return render(scenes), caption_index(scenes)

    return encode_pictures(pipe, draw, lambda batches: batches < count // batch_size, torch.float32)


def train_denoiser(
    pipe: StableDiffusionXLPipeline, moments: Tensor, prompts: Tensor, steps: int, batch_size: int
) -> None:
    """Trains the UNet and both text encoders together to predict the noise."""
    unet, device = pipe.unet.train(), pipe.unet.device
    captions = [*all_captions(), ""]
    input_ids = [tokenize(tokenizer, captions).to(device) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)]
    alphas_cumprod = pipe.scheduler.alphas_cumprod.to(device)
    added = time_ids(IMAGE_SIZE, batch_size, device)

    def loss() -> Tensor:
        rows = torch.randint(len(moments), (batch_size,), device=device)
        latents = DiagonalGaussianDistribution(moments[rows]).sample() * pipe.vae.config.scaling_factor
        dropped = torch.rand(batch_size, device=device) < CAPTION_DROPOUT
        chosen = torch.where(dropped, len(captions) - 1, prompts[rows])
        timesteps = torch.randint(len(alphas_cumprod), (batch_size,), device=device)
        noise = torch.randn_like(latents)
        alpha_bar = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
        with autocast(device):
            # Each of the 73 prompts is encoded once per step. Rows select theirs by a matrix product, whose gradient,
            # unlike that of indexing, is summed in a fixed order.
            embeddings, pooled = encode_prompts(pipe, input_ids)
            pick = F.one_hot(chosen, len(captions)).to(pooled.dtype)
            prediction = unet(
                noisy,
                timesteps,
                encoder_hidden_states=(pick @ embeddings.flatten(1)).unflatten(1, embeddings.shape[1:]),
                added_cond_kwargs={"text_embeds": pick @ pooled, "time_ids": added},
                return_dict=False,
            )[0]
        return F.mse_loss(prediction.float(), noise)

    modules = (unet, pipe.text_encoder, pipe.text_encoder_2)
    fit(
        "unet", (parameter for module in modules for parameter in module.parameters()), loss, Steps(steps), peak_lr=1e-3
    )
    unet.eval()


if __name__ == "__main__":
    main()
