"""The command that measures sliders of a world: how far the picture is from what each multiplier promises."""

import argparse
import json
import sys
from pathlib import Path

from sliders.compute.device import torch_device
from sliders.system.errors import InputError

from worlds.base import World
from worlds.evaluate import Curve, evaluate, format_curve, vae_limits
from worlds.models import attached, load_model
from worlds.plot import plot_curves


def main(world: World, description: str) -> int:
    arguments = parse_arguments(world, description)
    try:
        curves = measure_all(world, arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = (arguments.out or arguments.slider.parent) / f"{arguments.slider.stem}.measure"
    out.with_suffix(".measure.json").write_text(json.dumps({n: c.as_json() for n, c in curves.items()}, indent=1))
    plot_curves(
        {name: curve for name, curve in curves.items() if name != "base model"}, world, out.with_suffix(".measure.png")
    )
    print(f"wrote {out}.json and .png")
    return 0


def parse_arguments(world: World, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("slider", type=Path, metavar="SLIDER.safetensors")
    add("--compare", type=Path, nargs="+", default=[], metavar="SLIDER", help="others to put beside it")
    add("--attribute", choices=world.attributes, default="size")
    add("--multipliers", type=float, nargs="+", metavar="X", help="0 and the trained scales among them")
    add("--out", type=Path, metavar="DIR", help="folder for JSON and PNG (default: the slider's)")
    add("--model", type=Path, default=world.model, help="the world's model")
    add("--device", default="cpu", help="cpu (default) or a CUDA index")
    return parser.parse_args()


def measure_all(world: World, arguments: argparse.Namespace) -> dict[str, Curve]:
    """{file stem: curve}, after the base model's."""
    attribute = arguments.attribute
    if arguments.multipliers:
        missing = sorted({0.0, *world.attributes[attribute].scales} - set(arguments.multipliers))
        if missing:
            shown = ", ".join(format(m, "g") for m in missing)
            raise InputError(
                f"--multipliers: {shown} is missing, which {attribute} is measured by: add it, or leave the flag out."
            )
    model = load_model(arguments.model, torch_device(arguments.device))
    shown = "  ".join(f"{m:.3g} for {w:.3g} ({s:.2f})" for _, w, m, s in vae_limits(world, model, attribute))
    print(f"training pictures through the VAE, measured for wanted: {shown}")
    curves = {"base model": evaluate(world, model, None, attribute)}
    print(format_curve("base model", curves["base model"], world), flush=True)
    for path in [arguments.slider, *arguments.compare]:
        network = attached(path, model)
        curves[path.stem] = evaluate(world, model, network, attribute, arguments.multipliers)
        network.remove()
        print(format_curve(path.stem, curves[path.stem], world), flush=True)
    return curves
