"""Time pictures of one prompt at several multipliers: in one batch, as sample_slider-xl.py makes them, and one by one.

For comparison, diffusers' own pipeline makes as many pictures in the same ways, without a slider, compilation or graphs,
and with its default attention and VAE. All pictures are decoded one after the other, in float32. Times include captures.

    uv run trainscripts/benchmarks/bench_sampling.py --json bench_sampling.json

By default a full-size SDXL with random weights at 1024 px. Without a GPU, use `--model tiny --resolution 128`.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_world import build_model, publish, synchronize
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.device import DTYPES, place, torch_device, use_device
from sliders.config.schema import Network
from sliders.fast.path import FastPath, fuse_vae
from sliders.sample.sampling import Row, Sampling, sample

MULTIPLIERS = (0.0, 0.67, 1.0, 1.3, 2.0, 2.7)


class Bench:
    """A model, to which `attach` adds a random slider, and one row per multiplier for one prompt and seed."""

    def __init__(self, args: argparse.Namespace, device: str):
        self.device = device
        self.model = build_model(args.model, args.precision, self.device)
        embeds = self.model.encode_prompts(["a", ""], self.device)
        place(self.model.denoiser, self.device, self.model.dtype)
        self.model.pipe.vae.to(self.device)
        self.negative, self.rows = embeds[""], [Row(embeds["a"], 1, (m,)) for m in MULTIPLIERS]
        self.size = {"width": args.resolution, "height": args.resolution, "steps": args.steps, "guidance": 5.0}
        self.rank = args.rank
        self.made: dict[int, torch.Tensor] = {}  # batch size → pictures

    @torch.no_grad()
    def diffusers_seconds(self, batch_size: int) -> float:
        """The time of diffusers' pipeline for one picture per row, in calls of `batch_size`. Call it before `attach`."""
        model, size = self.model, self.size
        prompt = self.rows[0].prompt
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(0, len(self.rows), batch_size):
            latents = model.pipe(
                prompt_embeds=prompt.tokens[None],
                pooled_prompt_embeds=prompt.pooled[None],
                negative_prompt_embeds=self.negative.tokens[None],
                negative_pooled_prompt_embeds=self.negative.pooled[None],
                num_images_per_prompt=batch_size,
                width=size["width"], height=size["height"], num_inference_steps=size["steps"],
                guidance_scale=size["guidance"],
                output_type="latent",
            ).images  # fmt: skip
            for picture in latents:
                model.decode(picture).cpu()
        return time.perf_counter() - began

    def attach(self) -> None:
        if self.device.startswith("cuda"):
            self.model.denoiser.to(memory_format=torch.channels_last)
            fuse_vae(self.model.vae, self.device)
        settings = Network(type="c3lier", rank=self.rank, alpha=self.rank / 2, training_method="noxattn")
        self.network = AdaptorNetwork(self.model.denoiser, settings)
        with torch.no_grad():
            for adaptor in self.network.adaptors:
                adaptor.up.normal_(std=0.02)
        FastPath(self.model.denoiser, [self.network])

    @torch.no_grad()
    def seconds(self, batch_size: int) -> float:
        """The time of our pictures, in batches of `batch_size`. Keeps them in `made` [rows, 3, H, W]."""
        sampling = Sampling(**self.size, batch_size=batch_size)
        synchronize(self.device)
        began = time.perf_counter()
        found = list(sample(self.model, [self.network], self.rows, self.negative, sampling))
        seconds = time.perf_counter() - began
        self.made[batch_size] = torch.stack(found)
        return seconds


def timed(repeats: int, seconds: Callable[[int], float], batch_size: int) -> float:
    """The median, after a call that warms up."""
    seconds(batch_size)
    return statistics.median(seconds(batch_size) for _ in range(repeats))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="full", help="full (random weights; default), tiny, or any SDXL")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rank", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=DTYPES, help="default: bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--device", default="0")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    device = torch_device(args.device)
    use_device(device)
    cuda = device.startswith("cuda")
    args.precision = args.precision or ("bfloat16" if cuda else "float32")  # random weights overflow in float16
    gc.freeze()  # as the commands do after their imports
    bench, sizes = Bench(args, device), (len(MULTIPLIERS), 1)
    theirs = {size: timed(args.repeats, bench.diffusers_seconds, size) for size in sizes}
    bench.attach()
    ours = {size: timed(args.repeats, bench.seconds, size) for size in sizes}
    together, singly = sizes
    found = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        **{k: getattr(args, k) for k in ("model", "resolution", "steps", "rank", "precision")},
        "pictures": len(MULTIPLIERS),
        "together_s": round(ours[together], 3),
        "one_by_one_s": round(ours[singly], 3),
        "diffusers_together_s": round(theirs[together], 3),
        "diffusers_one_by_one_s": round(theirs[singly], 3),
        "times_diffusers_together": round(theirs[together] / ours[together], 2),
        "times_diffusers_one_by_one": round(theirs[singly] / ours[singly], 2),
        "largest_difference": (bench.made[singly] - bench.made[together]).abs().max().item(),
        "finite": bool(bench.made[singly].isfinite().all()),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
    }
    publish(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
