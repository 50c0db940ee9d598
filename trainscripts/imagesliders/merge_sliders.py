"""Add several sliders or LoRAs at multipliers into one LoRA file. `--help` lists the flags.

    uv run trainscripts/imagesliders/merge_sliders.py A.safetensors B.safetensors --multipliers 1, -0.5 --out C.safetensors

Exact, because the files' ranks are concatenated. With `--rank N`, the best approximation of that rank, and how good it is.
"""

import sys

from sliders.config.flags import Parser, join_list_flags, parse_scales, path, whole
from sliders.config.slider_tools import add_model_flags, add_out_flags, check_out
from sliders.system.command import command
from sliders.system.errors import InputError
from sliders.system.progress import importing_libraries

LIST_FLAGS = ("--multipliers",)
HIGHEST = 4096  # --rank


def build_parser() -> Parser:
    parser = Parser(
        prog="merge_sliders.py",
        description="Add several sliders or LoRAs at multipliers into one LoRA file.",
        epilog="The ranks of LoRAs are concatenated, which is exact. LoHa, LoKr and full differences need --rank.",
    )
    add = parser.add_argument
    add("slider", nargs="+", type=path, metavar="SLIDER", help="files of sliders, or of other programs' LoRAs")
    add("--multipliers", metavar="X, Y, …", help="one for each file, in their order (default: 1 for all)")
    add("--rank", type=whole, metavar="N",
        help="rank of each layer, by a singular value decomposition; the error is stated (default: exact)")  # fmt: skip
    add_model_flags(parser)
    add_out_flags(parser, None)
    return parser


def multipliers_of(text: str | None, count: int) -> tuple[float, ...]:
    """Raises InputError unless `text` has `count` numbers, none of them 0."""
    if text is None:
        return (1.0,) * count
    found = parse_scales(text, "--multipliers")
    if len(found) != count:
        raise InputError(f"--multipliers: {text!r} has {len(found)} numbers for {count} files: give one for each.")
    if 0 in found:
        raise InputError(f"--multipliers: {text!r} has a 0, at which a file adds nothing: leave that file out.")
    return found


@command
def main(argv: list[str]) -> None:
    flags = build_parser().parse_args(join_list_flags(argv, LIST_FLAGS))
    multipliers = multipliers_of(flags.multipliers, len(flags.slider))
    if flags.rank is not None and not 1 <= flags.rank <= HIGHEST:
        raise InputError(f"--rank: {flags.rank} is not from 1 to {HIGHEST}: choose one such as 32.")
    check_out(flags.out, flags.overwrite)
    # imports torch, which --help and a mistyped flag need not wait for
    with importing_libraries():
        from sliders.formats.chosen_model import chosen_model
        from sliders.formats.merging import merge

    with chosen_model(flags.family, flags.model) as (family, model):
        sources = list(zip(flags.slider, multipliers, strict=True))
        done = merge(sources, flags.out, model, family, flags.rank)
    ranks = f"rank {done.ranks[0]}" if len(done.ranks) == 1 else f"ranks {done.ranks[0]} to {done.ranks[-1]}"
    print(
        f"saved   {flags.out}\nlayers  {done.layers} of {ranks}\nerror   {error_of(done.error, done.worst, done.layer, flags.rank)}"
    )
    for note in done.notes:
        print(f"note: {note}")


def error_of(whole_error: float, worst: float, layer: str, rank: int | None) -> str:
    """What the file lacks of the sum, in words."""
    if rank is None:
        return "none: the ranks are concatenated"
    return f"{whole_error:.2%} of the sum (Frobenius norm of all weights), at most {worst:.2%} of a layer ({layer})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
