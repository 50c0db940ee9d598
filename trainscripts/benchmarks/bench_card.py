"""Time the report card of one slider: everything but making the pictures.

    uv run trainscripts/benchmarks/bench_card.py

By default 5 prompts × 9 multipliers at 1024 px, measured by 24 names in four folders, with a full-size SDXL of random weights.
Without a GPU, use `--model trainscripts/shapesworld/model --resolution 128`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_world import build_model, publish, synchronize
from PIL import Image
from sliders.compute.device import DTYPES, place, torch_device, use_device
from sliders.config.schema import Data
from sliders.data.dataset import ScaleFolders
from sliders.fast.path import FastPath, fuse_vae
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.report.page import Page, render
from sliders.report.summary import measured
from sliders.report.yardstick import Yardstick, card_multipliers

SCALES = {"small": 0.67, "base": 1.0, "large": 1.3, "huge": 2.0}
NAMES = 24


def write_folders(root: Path, size: int) -> ScaleFolders:
    """Noise images, compressed little, so that reading them takes about as long as reading photographs."""
    generator = torch.Generator().manual_seed(0)
    for folder in SCALES:
        (root / folder).mkdir()
        for name in range(NAMES):
            noise(size, generator).save(root / folder / f"{name}.png", compress_level=1)
    data = Data(folder_main=root, folders=tuple(SCALES), scales=tuple(SCALES.values()))
    return ScaleFolders.find(data, SDXL_FAMILY.facts.size_multiple)


def noise(size: int, generator: torch.Generator) -> Image.Image:
    pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="full", help="full (random weights; default), tiny, or any SDXL")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--precision", choices=DTYPES, help="default: bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--device", default="0")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    device = torch_device(args.device)
    use_device(device)
    cuda = device.startswith("cuda")
    model = build_model(args.model, args.precision or ("bfloat16" if cuda else "float32"), device)
    prompt = model.encode_prompts([""], device)[""]
    place(model.denoiser, device, model.dtype)
    if cuda:
        model.denoiser.to(memory_format=torch.channels_last)
    model.vae.to(device)
    fuse_vae(model.vae, device)
    FastPath(model.denoiser)
    generator, multipliers = torch.Generator().manual_seed(1), card_multipliers(tuple(SCALES.values()))
    sweeps = [[noise(args.resolution, generator) for _ in multipliers] for _ in range(args.prompts)]
    with tempfile.TemporaryDirectory() as temporary:
        data = write_folders(Path(temporary), args.resolution)
        synchronize(device)
        began = time.perf_counter()
        yardstick = Yardstick(model, data, (args.resolution, args.resolution), prompt)
        fitted = time.perf_counter()
        card = yardstick.measure(sweeps, multipliers)
        size = args.resolution
        render(Page("bench", size, size, [], cards=[measured("bench", card)]))
        ended = time.perf_counter()
    found = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        **{key: getattr(args, key) for key in ("model", "resolution", "prompts")},
        "pictures": len(sweeps) * len(multipliers),
        "folder_images": yardstick.images,
        "folders_s": round(fitted - began, 2),
        "pictures_s": round(ended - fitted, 2),
        "total_s": round(ended - began, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
    }
    publish(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
