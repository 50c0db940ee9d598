"""Two sliders at once: does each keep its calibration while the other moves?

    uv run trainscripts/shapesworld/two_sliders.py SIZE.safetensors size POSITION.safetensors position

Prints, for every pair of trained multipliers, the mean of each attribute over the evaluation captions, and the mess.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import torch
from sliders.compute.device import torch_device
from sliders.sample.sampling import Row, sample
from worlds.models import attached, device_of, load_model, world_sampling

from shapesworld.attributes import ATTRIBUTES, evaluation_scenes, measured
from shapesworld.evaluate import SHAPES
from shapesworld.world import IMAGE_SIZE, Scenes


def measure_grid(files: list[Path], names: list[str], device: str) -> list[dict]:
    """One entry per pair of multipliers: {"at": both, name: mean of that attribute, ..., "mess"}."""
    model = load_model(SHAPES.model, device)
    networks = [attached(path, model) for path in files]
    jobs = SHAPES.evaluation(names[0])
    embeds = model.encode_prompts([*(text for text, _ in jobs), ""], device)
    pairs = list(product(*((0.0, *ATTRIBUTES[name].scales) for name in names)))
    rows = [Row(embeds[text], seed, pair) for pair in pairs for text, seed in jobs]
    sampling = world_sampling(IMAGE_SIZE, device_of(model))
    scenes = evaluation_scenes(names[0])
    pictures = torch.stack(list(sample(model, networks, rows, embeds[""], sampling))).unflatten(0, (len(pairs), -1))
    return [{"at": pair, **_means(names, shown, scenes)} for pair, shown in zip(pairs, pictures, strict=True)]


def _means(names: list[str], pictures: torch.Tensor, scenes: Scenes) -> dict[str, float]:
    found = {"mess": measured(names[0], pictures, scenes).mess.mean().item()}
    for name in names:
        values = getattr(measured(name, pictures, scenes), ATTRIBUTES[name].measure)
        found[name] = values[~values.isnan()].mean().item()
    return found


def format_grid(grid: list[dict], names: list[str]) -> str:
    """For each of the two attributes its calibration at every multiplier of the other."""
    lines = []
    for i, name in enumerate(names):
        attribute, other = ATTRIBUTES[name], names[1 - i]
        lines.append(f"{name}: calibration ({attribute.unit}), mess at most")
        for fixed in (0.0, *ATTRIBUTES[other].scales):
            entries = [e for e in grid if e["at"][1 - i] == fixed and e["at"][i] in attribute.scales]
            off = sum(abs(e[name] - attribute.at_scale(e["at"][i])) for e in entries) / len(entries)
            lines.append(f"  {other} at {fixed:5g}: {off:6.3g}  {max(e['mess'] for e in entries):.3f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for which in ("first", "second"):
        parser.add_argument(f"{which}", type=Path, metavar=f"{which.upper()}.safetensors")
        parser.add_argument(f"{which}_attribute", choices=ATTRIBUTES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    names = [args.first_attribute, args.second_attribute]
    grid = measure_grid([args.first, args.second], names, torch_device(args.device))
    print(format_grid(grid, names))
    if args.json:
        args.json.write_text(json.dumps(grid))
    return 0


if __name__ == "__main__":
    sys.exit(main())
