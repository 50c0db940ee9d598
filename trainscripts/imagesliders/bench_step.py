"""Time the trainer's step on a full-size SDXL with random weights: seconds and memory need no real ones.

    uv run trainscripts/imagesliders/bench_step.py --resolutions 512 1024 --optimizers adamw adamw8bit

On a machine without a GPU use `--model tiny`.
"""

import argparse
import gc
import json
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from PIL import Image
from sliders.dataset import ScaleFolders
from sliders.models.random_sdxl import RandomSDXL
from sliders.models.sdxl import load_sdxl
from sliders.schema import Data, Logging, Network, Other, PretrainedModel, Preview, PromptSet, Save, Settings, Train
from sliders.trainer import DTYPES, Trainer, torch_device

SCALES = {"low": 0.67, "middle": 1.0, "high": 2.0}


def write_noise_images(root: Path, size: int) -> ScaleFolders:
    """Two names in three folders, pictures of `size` px full of noise."""
    generator = torch.Generator().manual_seed(0)
    for folder in SCALES:
        (root / folder).mkdir(parents=True)
        for name in ("a", "b"):
            pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator)
            Image.frombytes("RGB", (size, size), bytes(pixels.flatten().tolist())).save(root / folder / f"{name}.png")
    return ScaleFolders.find(Data(folder_main=root, folders=tuple(SCALES), scales=tuple(SCALES.values())))


def make_settings(args: argparse.Namespace, root: Path, optimizer: str, resolution: int) -> Settings:
    return Settings(
        config_file=root,
        pretrained_model=PretrainedModel(name_or_path="tiny"),
        network=Network(type="c3lier", rank=args.rank, alpha=args.rank / 2, training_method="noxattn"),
        train=Train(precision=args.precision, iterations=args.steps, optimizer=optimizer, max_denoising_steps=850),
        save=Save(name="bench", path=root),
        preview=Preview(),
        logging=Logging(),
        other=Other(gradient_checkpointing=args.gradient_checkpointing, torch_compile=args.torch_compile),
        prompts=(PromptSet(target="", resolution=resolution, batch_size=args.batch_size),),
        data=Data(folder_main=root, folders=tuple(SCALES), scales=tuple(SCALES.values())),
        device=args.device,
    )


def measure(args: argparse.Namespace, optimizer: str, resolution: int, device: str) -> dict:
    """Train `--steps` steps; the median leaves out the first three, in which libraries warm up."""
    cuda = device.startswith("cuda")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings, data = make_settings(args, root, optimizer, resolution), write_noise_images(root / "data", resolution)
        dtype = DTYPES[args.precision]
        model = RandomSDXL(device, dtype) if args.model == "full" else load_sdxl(settings.pretrained_model, dtype)
        trainer = Trainer(settings, data, model)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    for step in range(args.steps):
        began = time.perf_counter()
        losses.append(trainer.step(step).loss)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    syncs = count_synchronizations(trainer, args.steps) if cuda else None
    steady = sorted(seconds[3:])
    return {
        "optimizer": optimizer,
        "resolution": resolution,
        "batch_size": args.batch_size,
        "first_step_s": round(seconds[0], 3),
        "median_s": round(steady[len(steady) // 2], 4),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "synchronizations": syncs,
        "parameters": trainer.network.num_parameters(),
        "losses": [round(loss, 4) for loss in losses],
        "finite": all(map(math.isfinite, losses)),
    }


def count_synchronizations(trainer: Trainer, step: int) -> int:
    """How often one step waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("full", "tiny"), default="full")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "adamw8bit"])
    parser.add_argument("--batch_size", type=int, default=1, help="pairs of images in a step")
    parser.add_argument("--rank", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--torch_compile", action="store_true")
    parser.add_argument("--device", default="0")
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    device = torch_device(args.device)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    print(f"{name}, torch {torch.__version__}, {args.model} model, {args.precision}, rank {args.rank}")
    results = []
    for resolution in args.resolutions:
        for optimizer in args.optimizers:
            results.append(found := measure(args, optimizer, resolution, device))
            print(
                f"{resolution:5d} px  {optimizer:10s}  {found['median_s']:.4f} s/step  peak {found['peak_gib']} GiB  "
                f"first step {found['first_step_s']} s  waits {found['synchronizations']}  finite {found['finite']}  "
                f"loss {found['losses'][0]} … {found['losses'][-1]}",
                flush=True,
            )
            gc.collect()  # the trainer before must not count in the next one's peak
    if args.json:
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "results": results}, indent=1))
    return 0 if all(r["finite"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
