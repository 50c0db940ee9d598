"""Trains a narrow FLUX.2 on the shapes world from scratch, by the clock, on one GPU. Writes a diffusers folder in fp16.

    uv run trainscripts/shapesworld/pretrain_flux2.py --out trainscripts/shapesworld/model-flux2 --seconds 280

It stops by itself: `--seconds` are counted from the start of training to the written folder, imports apart.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import Flux2KleinPipeline
from sliders.models.flow.model import TEXT_LENGTH, TIMESTEPS
from sliders.models.flux2.configs import NARROW, TRANSFORMER
from sliders.models.flux2.latents import image_places, patched, text_places, to_tokens
from sliders.models.flux2.narrow import build_narrow_klein
from sliders.models.objective import Objective
from torch import Tensor
from worlds.training import CAPTION_DROPOUT, Pace, Seconds, autocast, fit, print_sizes, save

from shapesworld.pretrain import train_vae
from shapesworld.world import IMAGE_SIZE, all_captions, caption_index, render, sample_scenes, words

# At most 8 MiB of weights in fp16.
SMALL = {
    "transformer_config": {
        **TRANSFORMER,
        "num_layers": 1,
        "num_single_layers": 4,
        "attention_head_dim": 32,
        "num_attention_heads": 6,
        "joint_attention_dim": NARROW["joint_attention_dim"],
        "timestep_guidance_channels": 64,
        "mlp_ratio": 2.0,
        "axes_dims_rope": (8, 8, 8, 8),
    },
    "vae_widths": (16, 24, 40, 56),
    "vae_groups": 8,
}
SIZES = {"small": SMALL, "tiny": {}}  # tiny: for tests
# The text encoder stays random. Its weights are larger than a new one's, so that a token's state tells what came before it.
TEXT_DEVIATION = 0.1
SIZE = (IMAGE_SIZE // 16, IMAGE_SIZE // 16)  # of the map of patches
SHORT = 64  # tokens of a prompt: more than any has, and an eighth of those that the pipeline pads it to
SHIFT = 2.0  # of the timesteps towards noise, where size and place are decided (Esser et al. 2024, arXiv:2403.03206)
VAE_SHARE, ENCODING_SHARE = 0.22, 0.05  # of the time
SHORT_SHARE = 0.55  # of the time that is then left; the rest is for prompts in full length
SAVING_SECONDS = 5.0  # kept back at the end, at most a tenth of the time


def main() -> None:
    arguments = parse_arguments()
    seconds, batch_size = arguments.seconds, arguments.batch_size
    torch.manual_seed(arguments.seed)
    started = time.time()
    end = started + seconds - min(SAVING_SECONDS, 0.1 * seconds)
    pipe = build_pipeline(arguments.size, arguments.seed, torch.device(arguments.device))
    train_vae(pipe, Seconds(VAE_SHARE * seconds), min(batch_size, 64))
    latents, prompts = encode_world(pipe, time.time() + ENCODING_SHARE * seconds, arguments.scenes, batch_size)
    tokens = encode_captions(pipe)
    short = Seconds(SHORT_SHARE * (end - time.time()))
    train_denoiser(pipe, latents, prompts, tokens[:, :SHORT], short, batch_size, peak_lr=1e-3)
    train_denoiser(pipe, latents, prompts, tokens, Seconds(end - time.time()), batch_size, peak_lr=5e-4)
    save(pipe, arguments.out)
    print(f"wrote {arguments.out} after {time.time() - started:.0f} s", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write")
    add("--seconds", type=float, default=280.0, help="time for everything")
    add("--size", choices=SIZES, default="small", help="of the model")
    add("--batch_size", type=int, default=256, help="for the transformer; the VAE's is at most 64")
    add("--scenes", type=int, default=131_072, help="number of scenes to encode for training the transformer, at most")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def build_pipeline(size: str, seed: int, device: torch.device) -> Flux2KleinPipeline:
    """With random weights, on `device`. Prints the number of parameters."""
    pipe = build_narrow_klein(seed, words=words(), text_deviation=TEXT_DEVIATION, **SIZES[size])
    transformer = pipe.transformer
    with torch.no_grad():  # the blocks change nothing at first (Peebles & Xie 2023, arXiv:2212.09748, section 3.2)
        for name, weight in transformer.named_parameters():
            if "modulation" in name or name.startswith(("norm_out", "proj_out")):
                weight.zero_()
    pipe.set_progress_bar_config(disable=True)
    print_sizes(pipe)
    return pipe.to(device)


@torch.no_grad()
def encode_world(pipe: Flux2KleinPipeline, until: float, count: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Latents [N, 128, 8, 8] fp16 of patches, normalised, and caption indices [N] int64 of scenes: `count`, or as many as there is
    time for. Sets the statistics of the VAE's latents.
    """
    vae = pipe.vae
    latents, prompts = [], []
    while not latents or (len(latents) * batch_size < count and time.time() < until):
        scenes = sample_scenes(batch_size, device=vae.device)
        with autocast(vae.device):
            latents.append(patched(vae.encode(render(scenes) * 2 - 1).latent_dist.mode()).float())
        prompts.append(caption_index(scenes))
        if vae.device.type == "cuda":
            torch.cuda.synchronize()  # or the clock would run ahead of the GPU's work
    means = torch.stack([batch.mean((0, 2, 3)) for batch in latents])
    squares = torch.stack([batch.square().mean((0, 2, 3)) for batch in latents])
    vae.bn.running_mean.copy_(means.mean(0))
    vae.bn.running_var.copy_(squares.mean(0) - means.mean(0).square())
    mean = vae.bn.running_mean.view(-1, 1, 1)
    deviation = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(-1, 1, 1)
    quantiles = deviation.flatten().quantile(torch.tensor([0.0, 0.5, 1.0], device=deviation.device)).tolist()
    print(
        f"vae: {len(latents) * batch_size} scenes encoded, deviation of their patches' channels "
        + " / ".join(f"{value:.3f}" for value in quantiles)
        + " (least, median, most)",
        flush=True,
    )
    return torch.cat([((batch - mean) / deviation).half() for batch in latents]), torch.cat(prompts)


@torch.no_grad()
def encode_captions(pipe: Flux2KleinPipeline) -> Tensor:
    """[73, 512, C] fp32: states of the text encoder for each caption, and the empty prompt at the end."""
    captions = [*all_captions(), ""]
    return pipe.encode_prompt(captions, device=pipe.vae.device, max_sequence_length=TEXT_LENGTH)[0].float()


def train_denoiser(
    pipe: Flux2KleinPipeline, latents: Tensor, prompts: Tensor, tokens: Tensor, pace: Pace, batch_size: int,
    peak_lr: float,
) -> None:  # fmt: skip
    """Trains the transformer to predict velocities, from prompts of as many tokens as [73, L, C] `tokens` have."""
    transformer = pipe.transformer.train()
    device, length = transformer.device, tokens.shape[1]
    objective = Objective.rectified_flow(TIMESTEPS).to(device)
    strata = torch.arange(batch_size, device=device)
    places = {"img_ids": image_places(SIZE, device), "txt_ids": text_places(length, device)}

    def loss() -> Tensor:
        rows = torch.randint(len(latents), (batch_size,), device=device)
        dropped = torch.rand(batch_size, device=device) < CAPTION_DROPOUT
        chosen = torch.where(dropped, len(tokens) - 1, prompts[rows])
        # one level from each of equal parts of the range: the batch's mean varies less
        level = (strata + torch.rand(batch_size, device=device)) / batch_size
        level = SHIFT * level / (1 + (SHIFT - 1) * level)
        timesteps = (level * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)
        clean = latents[rows].float()
        noise = torch.randn_like(clean)
        noisy = objective.add_noise(clean, noise, timesteps)
        with autocast(device):
            prediction = transformer(
                hidden_states=to_tokens(noisy),
                encoder_hidden_states=tokens[chosen],
                timestep=objective.sigmas[timesteps],
                return_dict=False,
                **places,
            )[0]
        return F.mse_loss(prediction.float(), to_tokens(objective.target(clean, noise, timesteps)))

    steps = fit(f"transformer, {length} tokens", transformer.parameters(), loss, pace, peak_lr)
    print(f"transformer: {steps} steps of {batch_size}, {length} tokens of a prompt", flush=True)
    transformer.eval()


if __name__ == "__main__":
    main()
