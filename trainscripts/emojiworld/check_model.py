"""Checks the model: a sheet of captions × seeds from the stock pipeline, how like their names they are, and what the VAE loses.

    uv run trainscripts/emojiworld/check_model.py --model trainscripts/emojiworld/model --sheet sheet.png

Each row of the sheet is a caption: its true picture, that picture after the VAE, and one picture for each seed.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from sliders.system.errors import InputError
from torch import Tensor
from worlds.base import ThroughVAE
from worlds.models import load_model, sample_stock, save_grid, through_the_vae

from emojiworld.attributes import ATTRIBUTES, at_scale, evaluation_scenes
from emojiworld.distance import distance
from emojiworld.evaluate import MODEL, EmojiWorld
from emojiworld.looking import look
from emojiworld.pictures import PICTURES, Pictures
from emojiworld.world import IMAGE_SIZE, Scenes, captions, render, sample_scenes

MANY = 256  # scenes for the VAE's error


def main() -> int:
    arguments = parse_arguments()
    world = EmojiWorld(arguments.pictures)
    try:
        scenes = evaluation_scenes(world.pictures, arguments.attribute)
        model = load_model(arguments.model, arguments.device)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    vae = partial(through_the_vae, model)
    report_vae(world.pictures, vae)
    report_measures(world, vae)
    pipe = StableDiffusionXLPipeline.from_pretrained(arguments.model).to(arguments.device)
    pipe.set_progress_bar_config(disable=True)
    texts = [text for text in captions(scenes, world.pictures) for _ in range(arguments.seeds)]
    started = time.time()
    made = sample_stock(pipe, texts, IMAGE_SIZE, arguments.seed, arguments.steps, arguments.guidance)
    print(f"{len(made)} pictures in {time.time() - started:.1f} s on {arguments.device}")
    made = made.unflatten(0, (len(scenes), arguments.seeds))
    report_likeness(world.pictures, scenes, made)
    if arguments.sheet:
        true = render(scenes, world.pictures)
        columns = torch.cat([true[:, None], vae(true)[:, None], made], dim=1)
        save_grid(columns.flatten(0, 1), columns.shape[1], arguments.sheet)
        print(f"wrote {arguments.sheet}; rows: {'; '.join(texts[:: arguments.seeds])}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=MODEL)
    add("--attribute", choices=ATTRIBUTES, default="size", help="whose sixteen evaluation captions to draw")
    add("--seeds", type=int, default=4, help="pictures of each caption")
    add("--steps", type=int, default=20)
    add("--guidance", type=float, default=3.0)
    add("--seed", type=int, default=123)
    add("--sheet", type=Path, help="file for the sheet")
    add("--pictures", type=Path, default=PICTURES, help="the archive that get_pictures.py wrote")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def report_vae(pictures: Pictures, vae: ThroughVAE) -> None:
    """Error of the VAE over scenes as the model was trained on."""
    true = render(sample_scenes(pictures, MANY, torch.Generator().manual_seed(0)), pictures)
    shown = torch.cat([vae(part) for part in true.split(32)])
    squared = (shown - true).square().mean((1, 2, 3))
    noise = -10 * squared.log10()
    print(
        f"VAE, {MANY} scenes: mean |error| {(shown - true).abs().mean():.4f}, PSNR {noise.mean():.1f} dB (worst {noise.min():.1f}),"
        f" distance {distance(shown, true).mean():.3f}",
        flush=True,
    )


def report_measures(world: EmojiWorld, vae: ThroughVAE) -> None:
    """What the held-out names' true pictures measure as, as they are and after the VAE."""
    for name, attribute in ATTRIBUTES.items():
        scenes = evaluation_scenes(world.pictures, name)
        cells = []
        for scale in attribute.scales:
            true = render(at_scale(scenes, name, scale), world.pictures)
            plain, after = (world.values(name, shown[:, None]) for shown in (true, vae(true)))
            cells.append(f"{attribute.value(scale):g}: {_summary(plain)}, {_summary(after)}")
        print(f"{name}, {attribute.unit}; true: measured (spread), after the VAE: {'; '.join(cells)}", flush=True)


def _summary(values: Tensor) -> str:
    seen = values[~values.isnan()]
    return f"{seen.mean():.3g} ({seen.std():.2g})"


def report_likeness(pictures: Pictures, scenes: Scenes, made: Tensor) -> None:
    """made [N, seeds, 3, H, W]: how often the true pictures of a caption's name are nearer than those of the other captions' names."""
    attribute = ATTRIBUTES["size"]
    found = [look(made[:, seed], scenes, pictures, attribute.field, attribute.read) for seed in range(made.shape[1])]
    hits, distances = [], []
    for seed, seen in enumerate(found):
        shifts = [seen.renamed(seen.scenes.name.roll(shift)).drawn(pictures) for shift in range(len(scenes))]
        every = torch.stack([distance(made[:, seed], true) for true in shifts])
        hits.append((every.argmin(0) == 0).float().mean())
        distances.append(every[0].mean() / every[1:].mean())
    print(
        f"likeness, {made.shape[1]} seeds: {torch.stack(hits).mean():.0%} nearest to their own name of {len(scenes)},"
        f" at {torch.stack(distances).mean():.2f} of the distance to other names; nothing seen in"
        f" {sum(int(seen.values.isnan().sum()) for seen in found)} pictures"
    )


if __name__ == "__main__":
    sys.exit(main())
