"""Checks that the model draws its captions: samples with the stock pipeline and measures the pictures.

uv run trainscripts/shapesworld/check_model.py --model trainscripts/shapesworld/model --grid grid.png
"""

import argparse
import time
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from worlds.models import sample_stock, save_grid

from shapesworld.world import IMAGE_SIZE, Scenes, captions, measure, render, sample_scenes


def main() -> None:
    arguments = parse_arguments()
    pipe = DiffusionPipeline.from_pretrained(str(arguments.model)).to(arguments.device)
    pipe.set_progress_bar_config(disable=True)
    scenes = sample_scenes(arguments.images, torch.Generator().manual_seed(arguments.seed))
    started = time.time()
    images = sample_stock(pipe, captions(scenes), IMAGE_SIZE, arguments.seed, arguments.steps, arguments.guidance)
    print(f"{len(images)} images in {time.time() - started:.1f} s on {arguments.device}")
    report("model", images, scenes)
    many = sample_scenes(4096, torch.Generator().manual_seed(arguments.seed))
    report("world", render(many), many)
    if arguments.grid:
        save_grid(images[: arguments.columns**2], arguments.columns, arguments.grid)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--grid", type=Path, help="file for a grid of the first images")
    parser.add_argument("--columns", type=int, default=6, help="columns and rows of that grid")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def report(name: str, images: Tensor, scenes: Scenes) -> None:
    measures = measure(images, scenes)
    radius = measures.radius
    print(
        f"{name}: {len(images)} images, radius {radius.mean():.2f} ± {radius.std():.2f} px,"
        f" mess {measures.mess.mean():.4f} (worst {measures.mess.max():.4f}), colour error {measures.colour_error.nanmean():.4f},"
        f" x {measures.x.nanmean():.1f} px, empty {(radius < 1).sum().item()}",
        flush=True,
    )


if __name__ == "__main__":
    main()
