"""Flags of the scripts that turn slider files into others, without loading a model's weights."""

from pathlib import Path

from sliders.config.families import FAMILIES
from sliders.config.flags import Parser, path, place
from sliders.system.errors import InputError
from sliders.system.files import check_folder

VERSIONS = {v.name: (name, v) for name, versions in FAMILIES.items() for v in versions}  # --family → (family, version)


def add_model_flags(parser: Parser, also: str = "") -> None:
    """also: what else `--model` is for."""
    add = parser.add_argument
    add("--family", default="sdxl", choices=VERSIONS,
        help="the kind of model that it is for: sdxl (default), sd1 or sd2 for Stable Diffusion, klein for FLUX.2 [klein], "
        "zimage for Z-Image")  # fmt: skip
    add("--model", type=place, metavar="NAME_OR_PATH",
        help="the model it was trained on, if its layers differ in size from the usual model's, as the demo's do"
        f"{also}; no weights are loaded")  # fmt: skip


def add_out_flags(parser: Parser, default: str | None) -> None:
    """default: of `--out`, in words; None: it must be given."""
    usual = f"default: {default}" if default else "the file to write"
    parser.add_argument("--out", type=path, metavar="FILE", required=default is None, help=usual)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def check_out(out: Path, overwrite: bool) -> None:
    """Raises InputError unless `out` may be written."""
    if out.suffix != ".safetensors":
        raise InputError(f"--out: {out} must end in .safetensors: rename it.")
    if out.exists() and not overwrite:
        raise InputError(f"--out: {out} already exists: choose another name, or add --overwrite.")
    check_folder(out.parent, "--out", "choose another --out", out.name)
