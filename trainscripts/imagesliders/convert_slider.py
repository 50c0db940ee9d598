"""Turn a slider of the ancestors into a clean file of ours. `--help` lists the flags.

    uv run trainscripts/imagesliders/convert_slider.py old_slider.pt --alpha 1 --out models/old_slider.safetensors

Takes `.pt` files (no code in them is run), keys in diffusers' spelling, keys with `_orig_mod` or `lycoris` in them, and
files without alpha. Merging sliders is not offered.
"""

import sys
from pathlib import Path

from sliders.config.flags import Parser
from sliders.system.command import command
from sliders.system.errors import InputError
from sliders.system.files import check_folder


def build_parser() -> Parser:
    parser = Parser(
        prog="convert_slider.py",
        description="Turn a slider of the ancestors into a clean file of ours.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("slider", type=Path, metavar="SLIDER", help=".safetensors, .pt or .ckpt")
    add("--out", type=Path, metavar="FILE", help="default: NAME_converted.safetensors beside it")
    add("--alpha", type=float, help="the alpha it was trained at, where the file does not say")
    add("--reverse", action="store_true",
        help="do at X what it did at -X: for sliders of the fork, which come out swapped")  # fmt: skip
    add("--model", default="stabilityai/stable-diffusion-xl-base-1.0", metavar="NAME_OR_PATH",
        help="the model it is for, where that is not of SDXL's size; no weights are loaded")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the file at --out")
    return parser


@command
def main(argv: list[str]) -> None:
    flags = build_parser().parse_args(argv)
    out = flags.out or flags.slider.with_name(f"{flags.slider.stem}_converted.safetensors")
    if flags.alpha is not None and not 0 < flags.alpha < float("inf"):
        raise InputError(f"--alpha: {flags.alpha:g} is no alpha: give the positive number it was trained at.")
    if out.suffix != ".safetensors":
        raise InputError(f"--out: {out} must end in .safetensors: correct it.")
    if out.exists() and not flags.overwrite:
        raise InputError(f"--out: {out} is there already: choose another name, or add --overwrite.")
    check_folder(out.parent, "--out", "choose another --out", out.name)
    # torch comes in only now: --help and a mistyped flag answer at once
    from sliders.formats.conversion import convert
    from sliders.models import FAMILIES

    network = convert(flags.slider, out, flags.model, FAMILIES["sdxl"], flags.alpha, flags.reverse)
    print(
        f"saved   {out}\nlayers  {network.type} {network.training_method}, rank {network.rank}, alpha {network.alpha:g}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
