"""Trains a narrow SDXL on the shapes world from scratch, in minutes on one GPU. Writes a diffusers folder in fp16.

uv run trainscripts/shapesworld/pretrain.py --out trainscripts/shapesworld/model
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import logging as diffusers_logging
from sliders.compute.device import place
from sliders.models.sdxl.narrow import NarrowSDXL, build_narrow_sdxl
from torch import Tensor

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
CAPTION_DROPOUT = 0.1  # share of rows with an empty prompt, for classifier-free guidance
AVERAGED_SHARE = 0.1  # time constant of the weights' moving average, as a share of the run's steps
WARMUP_STEPS = 200


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    diffusers_logging.disable_progress_bar()
    device = torch.device(arguments.device)
    pipe = build_narrow_sdxl(WIDTHS, words(), arguments.seed).to(device)
    # SDXL's pipeline replaces a missing negative prompt with zeros, but this model learns the empty prompt.
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        count = sum(parameter.numel() for parameter in getattr(pipe, name).parameters())
        print(f"{name}: {count:,} parameters", flush=True)
    started = time.time()
    train_vae(pipe, arguments.vae_steps, min(arguments.batch_size, 64))
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


def train_vae(pipe: StableDiffusionXLPipeline, steps: int, batch_size: int) -> None:
    """Trains the VAE: L2 and L1 reconstruction, with a small weight on KL."""
    vae = pipe.vae.train()

    def loss() -> Tensor:
        pixels = render(sample_scenes(batch_size, device=vae.device)) * 2 - 1
        with autocast(vae.device):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()  # per latent
        return F.mse_loss(decoded.float(), pixels) + 0.2 * F.l1_loss(decoded.float(), pixels) + 1e-5 * kl

    fit("vae", vae.parameters(), loss, steps, peak_lr=2e-3)
    vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_world(pipe: StableDiffusionXLPipeline, count: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Encodes scenes and sets the VAE's scaling factor, so that latents have unit deviation.

    Returns moments [count, 8, 16, 16] fp32 and caption indices [count] int64, with count rounded down to whole batches.
    """
    vae = pipe.vae
    moments, prompts = [], []
    for _ in range(count // batch_size):
        scenes = sample_scenes(batch_size, device=vae.device)
        with autocast(vae.device):
            moments.append(vae.encode(render(scenes) * 2 - 1).latent_dist.parameters.float())
        prompts.append(caption_index(scenes))
    deviation = torch.stack([DiagonalGaussianDistribution(batch).sample().std() for batch in moments]).mean().item()
    vae.register_to_config(scaling_factor=1 / deviation)
    print(f"vae: {count} scenes encoded, scaling factor {vae.config.scaling_factor:.4f}", flush=True)
    return torch.cat(moments), torch.cat(prompts)


def train_denoiser(
    pipe: StableDiffusionXLPipeline, moments: Tensor, prompts: Tensor, steps: int, batch_size: int
) -> None:
    """Trains the UNet and both text encoders together to predict the noise."""
    unet, device = pipe.unet.train(), pipe.unet.device
    captions = [*all_captions(), ""]
    input_ids = [tokenize(tokenizer, captions).to(device) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)]
    alphas_cumprod = pipe.scheduler.alphas_cumprod.to(device)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    time_ids = torch.tensor([[*size, 0, 0, *size]], device=device, dtype=torch.float32).repeat(batch_size, 1)

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
                added_cond_kwargs={"text_embeds": pick @ pooled, "time_ids": time_ids},
                return_dict=False,
            )[0]
        return F.mse_loss(prediction.float(), noise)

    modules = (unet, pipe.text_encoder, pipe.text_encoder_2)
    fit("unet", (parameter for module in modules for parameter in module.parameters()), loss, steps, peak_lr=1e-3)
    unet.eval()


def tokenize(tokenizer, captions: list[str]) -> Tensor:
    """[len(captions), 77] int64, padded as by the pipeline."""
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def encode_prompts(pipe: StableDiffusionXLPipeline, input_ids: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Like pipe.encode_prompt, with gradients: embeddings [B, 77, 128] and pooled embeddings of encoder 2 [B, 64]."""
    first = pipe.text_encoder(input_ids[0], output_hidden_states=True)
    second = pipe.text_encoder_2(input_ids[1], output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on a GPU. The cache is off, because cached casts would outlive the step that a CUDA graph captures."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


def fit(name: str, parameters: Iterable[Tensor], loss: Callable[[], Tensor], steps: int, peak_lr: float) -> None:
    """Minimizes a loss that draws its own batches, by AdamW with warm-up and cosine decay.

    Leaves the parameters at their moving average. Raises FloatingPointError if the loss is not finite.
    """
    parameters = list(parameters)
    device = parameters[0].device
    average = [parameter.detach().clone() for parameter in parameters]
    newest = min(1.0, 1 / (AVERAGED_SHARE * steps))  # weight of the newest parameters in the average
    lr = torch.tensor(0.0, device=device)  # a tensor, so that a captured step sees it change
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True, capturable=device.type == "cuda")

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], newest)
        return value.detach()

    run = captured(step) if device.type == "cuda" else step
    started, losses = time.time(), []
    for index in range(steps):
        warmup = min(1.0, (index + 1) / WARMUP_STEPS)
        lr.fill_(peak_lr * warmup * (0.5 + 0.5 * math.cos(math.pi * index / steps)))
        losses.append(run().clone())
        if (index + 1) % max(1, steps // 10) == 0:
            mean = torch.stack(losses).mean().item()
            print(f"{name}: step {index + 1}, loss {mean:.5f}, {time.time() - started:.0f} s", flush=True)
            losses.clear()
            if not math.isfinite(mean):
                raise FloatingPointError(f"{name}: the loss is {mean} at step {index + 1}: lower peak_lr.")
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as a CUDA graph: a narrow network's kernels take longer to launch one by one than to run."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()

    def replay() -> Tensor:
        graph.replay()
        return value

    return replay


def save(pipe: StableDiffusionXLPipeline, out: Path) -> None:
    """Writes a diffusers folder: fp16 weights, loaded as fp32 unless the caller specifies another dtype."""
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        place(part, "cpu", torch.float16)
    pipe.save_pretrained(out)
    for name in ("text_encoder", "text_encoder_2"):
        # transformers loads the dtype in its config, diffusers fp32: one pipeline would get both.
        config_file = out / name / "config.json"
        config = json.loads(config_file.read_text()) | {"dtype": "float32"}
        config_file.write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer", "tokenizer_2"):
        # vocab.json and merges.txt, for programs that do not read tokenizer.json
        getattr(pipe, name).backend_tokenizer.model.save(str(out / name))


if __name__ == "__main__":
    main()
