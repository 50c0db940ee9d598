"""Convert a slider of the original trainers to a slider file that web UIs load. `--help` lists the flags.

    uv run trainscripts/imagesliders/convert_slider.py old_slider.pt --alpha 1 --out models/old_slider.safetensors

Accepts `.pt` files (without running any code in them), the keys of LECO, kohya's scripts, LyCORIS, diffusers, PEFT,
AI Toolkit, SimpleTuner and Musubi Tuner, keys that contain `_orig_mod`, and files without alpha, of LoRA, LoHa, LoKr, GLoRA
and full differences. Leaves out what is for text encoders. merge_sliders.py merges sliders. With `--keys`, writes a LoRA for another
program. With `--calibrate`, a slider that has a report card gets the strength at which its multipliers come nearest to the
folders' scales.
"""

import sys

from sliders.config.flags import Parser, number, path
from sliders.config.slider_tools import add_model_flags, add_out_flags, check_out
from sliders.system.command import command
from sliders.system.errors import InputError
from sliders.system.progress import importing_libraries

REVERSE_NOTE = (
    "--reverse restores the slider's direction. If all scales it was trained with were positive, it does not restore its "
    "strengths: use sample_slider-xl.py to find the multipliers you want."
)


PROGRAMS = ("diffusers", "ai-toolkit", "musubi-tuner")  # those of Family.namings


def build_parser() -> Parser:
    parser = Parser(
        prog="convert_slider.py",
        description="Convert a slider of the original trainers to a slider file that web UIs load.",
    )
    add = parser.add_argument
    add("slider", type=path, metavar="SLIDER", help=".safetensors, .pt or .ckpt: what is in it counts, not its name")
    add_out_flags(parser, "NAME_converted.safetensors beside the slider")
    add("--alpha", type=number, help="the alpha it was trained with, if the file does not contain it")
    add("--reverse", action="store_true",
        help="make multiplier X do what -X did, for sliders of the fork, whose direction is swapped; restores only the "
        "direction, not the old strengths, if all scales were positive")  # fmt: skip
    add_model_flags(parser, "; also for --calibrate")
    add("--keys", choices=PROGRAMS,
        help="write a LoRA of klein or zimage with the names that this program reads, instead of those that web UIs and this "
        "project read")  # fmt: skip
    add("--calibrate", action="store_true",
        help="instead of converting, fold the factor of the slider's report card into its weights (default of --out: "
        "NAME_calibrated.safetensors)")  # fmt: skip
    return parser


@command
def main(argv: list[str]) -> None:
    flags = build_parser().parse_args(argv)
    if flags.calibrate and (flags.alpha is not None or flags.reverse or flags.keys):
        raise InputError(
            "--calibrate: is for sliders of this trainer: leave out --alpha, --reverse and --keys, or convert first."
        )
    ending = "calibrated" if flags.calibrate else "converted"
    out = flags.out or flags.slider.with_name(f"{flags.slider.stem}_{ending}.safetensors")
    if flags.alpha is not None and not 0 < flags.alpha < float("inf"):
        raise InputError(f"--alpha: {flags.alpha:g} is not a positive number: give the alpha it was trained with.")
    check_out(out, flags.overwrite)
    # imports torch, which --help and a mistyped flag need not wait for
    with importing_libraries():
        from sliders.formats.cards import calibrate
        from sliders.formats.chosen_model import chosen_model
        from sliders.formats.conversion import convert

    with chosen_model(flags.family, flags.model) as (family, model):
        if not flags.calibrate:
            done = convert(flags.slider, out, model, family, flags.alpha, flags.reverse, flags.keys)
        else:
            found = calibrate(flags.slider, out, model, family)
    if flags.calibrate:
        print(
            f"saved   {out}\nfactor  {found.factor:.3g}: now off by {found.after:.2f} on average, before by {found.before:.2f}; "
            "no factor removes the rest, which is not linear"
        )
        return
    print(f"saved   {out}\nlayers  {done.layers}")
    for note in [*done.notes, *([REVERSE_NOTE] if flags.reverse else [])]:
        print(f"note: {note}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
