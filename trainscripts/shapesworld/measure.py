"""Measure sliders trained on the shapes world: how far the picture is from what each multiplier promises.

    uv run trainscripts/shapesworld/measure.py models/size_alpha16.0_rank16_noxattn/size_alpha16.0_rank16_noxattn_last.safetensors

Prints calibration, spread, order and mess, beside the base model's, and writes them next to the slider as JSON and
as one PNG. With `--compare` several sliders stand side by side.
"""

import argparse
import json
import sys
from pathlib import Path

from sliders.formats.slider_file import open_slider
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.system.errors import InputError

from shapesworld.attributes import ATTRIBUTES
from shapesworld.evaluate import Curve, evaluate, format_curve, load_model, through_the_vae
from shapesworld.plot import plot_curves


def main() -> int:
    arguments = parse_arguments()
    try:
        curves = measure_all([arguments.slider, *arguments.compare], arguments.attribute, arguments.multipliers)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = (arguments.out or arguments.slider.parent) / f"{arguments.slider.stem}.measure"
    out.with_suffix(".measure.json").write_text(json.dumps({n: c.as_json() for n, c in curves.items()}, indent=1))
    plot_curves(
        {name: curve for name, curve in curves.items() if name != "base model"}, out.with_suffix(".measure.png")
    )
    print(f"wrote {out}.json and .png")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slider", type=Path, metavar="SLIDER.safetensors")
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="SLIDER", help="others to put beside it")
    parser.add_argument("--attribute", choices=ATTRIBUTES, default="size")
    parser.add_argument("--multipliers", type=float, nargs="+", metavar="X", help="0 and the trained scales among them")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for JSON and PNG (default: the slider's)")
    return parser.parse_args()


def measure_all(paths: list[Path], attribute: str, multipliers: list[float] | None = None) -> dict[str, Curve]:
    """{file stem: curve}, after the base model's. multipliers: None takes the attribute's, see `dense_multipliers`."""
    model = load_model()
    shown = "  ".join(f"{m:.3g} for {w:.3g} ({s:.2f})" for _, w, m, s in through_the_vae(model, attribute))
    print(f"training pictures through the VAE, measured for wanted (shape): {shown}")
    curves = {"base model": evaluate(model, None, attribute)}
    print(format_curve("base model", curves["base model"]), flush=True)
    for path in paths:
        network = open_slider(path, model.denoiser, SDXL_FAMILY)
        curves[path.stem] = evaluate(model, network, attribute, multipliers)
        network.remove()
        print(format_curve(path.stem, curves[path.stem]), flush=True)
    return curves


if __name__ == "__main__":
    sys.exit(main())
