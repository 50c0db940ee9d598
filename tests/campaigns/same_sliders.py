"""Trains one small slider in each of many configurations and prints the hashes of their weights.

    python tests/campaigns/same_sliders.py --root ../before > before.txt
    python tests/campaigns/same_sliders.py --against before.txt

Two checkouts that print the same table train the same sliders: `sshs_model_hash` changes with any bit of any weight. Each
configuration runs the entry script of the checkout `--root` for 12 steps, in float32 but for the last one, on one thread of
the CPU. Another kind of processor rounds differently, so make both tables on one machine, with the same packages.

With `--against`, the exit status is 1 if a row differs or is missing, and those rows are named on stderr. If the earlier
sliders were kept (`--folder before`), `--against before` also says how far apart the weights are.
"""

import argparse
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from campaigns.soak import demo
from conftest import EXPERIMENT, ROOT, make_scale_folders, write_yaml
from safetensors import safe_open
from safetensors.torch import load_file
from scripts import run_script

SDXL, SD, TEXT = (
    "imagesliders/train_lora-scale-xl.py",
    "imagesliders/train_lora-scale.py",
    "textsliders/train_lora_xl.py",
)
STEPS, HALF = 12, 6  # checkpoints are written after both
FAILED = "failed"
DISCS = ({"target": "a disc", "positive": "a bright disc", "neutral": "a disc", "resolution": 64},)
CAPTIONED = ({"target": "", "positive": "{caption}, bright", "resolution": 64, "batch_size": 2},)
DYNAMIC = ({"target": "a disc", "resolution": 128, "dynamic_resolution": True, "dynamic_crops": True},)
WORDS = (
    {"target": "a disc", "positive": "a red disc", "unconditional": "a blue disc", "neutral": "a disc",
     "guidance_scale": 3, "resolution": 64, "batch_size": 2},
    {"target": "a ring", "positive": "a red ring", "unconditional": "", "action": "erase", "resolution": 64},
)  # fmt: skip
OWN_RANK = {"training_method": "xattn-strict", "include": [{"pattern": "*ff.net*", "rank": 2}]}


@dataclass(frozen=True)
class Configuration:
    """Sections of the YAML, laid over those of the tests' experiment, and what else a run is started with."""

    sections: dict = field(default_factory=dict)
    prompts: tuple[dict, ...] = DISCS
    script: str = SDXL
    resumed: bool = False  # stops half-way and continues in a second run


def network(**keys) -> Configuration:
    return Configuration({"network": keys})


def train(**keys) -> Configuration:
    return Configuration({"train": keys})


CONFIGURATIONS = {
    "lierla full": network(type="lierla", training_method="full"),
    "c3lier noxattn": network(),
    "c3lier xattn-strict, a layer's own rank": network(**OWN_RANK),
    "loha": network(algo="loha"),
    "lokr": network(algo="lokr", factor=4),
    "glora": network(algo="glora"),
    "full": network(algo="full"),
    "captions and dropout, two pairs": Configuration({"train": {"caption_dropout": 0.3}}, CAPTIONED),
    "dynamic crops and resolution": Configuration(prompts=DYNAMIC),
    "c3lier noxattn, resumed half-way": Configuration(resumed=True),
    "int8 with gradient checkpointing": Configuration(
        {"pretrained_model": {"quantize": "int8"}, "other": {"gradient_checkpointing": True}}
    ),
    "min-SNR with v-prediction": Configuration({"pretrained_model": {"v_pred": True}, "train": {"min_snr_gamma": 5}}),
    "timestep_bias auto": train(timestep_bias="auto"),
    "cosine, clipped, scales together": train(lr_scheduler="cosine", max_grad_norm=0.1, scales_per_step=2),
    "text": Configuration({"train": {"max_denoising_steps": 6}}, WORDS, TEXT),
    "Stable Diffusion 1": Configuration(script=SD),
    "demo": Configuration(),
    "bfloat16: c3lier noxattn": train(precision="bfloat16"),
}


def run_folder(name: str, folder: Path) -> Path:
    return folder / re.sub(r"\W+", "_", name).strip("_")


def command_line(name: str, root: Path, folder: Path) -> list[str]:
    """Writes what the configuration's run reads into `folder` and returns its flags."""
    configuration, own = CONFIGURATIONS[name], run_folder(name, folder)
    own.mkdir(exist_ok=True)
    if name == "demo":
        return [*demo(own, STEPS, model=None, root=root), "--per_steps", str(HALF)]
    config = {section: dict(values) for section, values in EXPERIMENT.items()}
    config["train"]["iterations"] = STEPS
    config["save"] = {"name": "probe", "path": str(own / "models"), "per_steps": HALF}
    for section, values in configuration.sections.items():
        config[section] = {**config.get(section, {}), **values}
    config["prompts_file"] = str(write_yaml(own / "prompts.yaml", list(configuration.prompts)))
    argv = ["--config_file", str(write_yaml(own / "config.yaml", config)), "--device", "cpu"]
    if configuration.script != TEXT:
        argv += ["--folder_main", str(images(folder)), "--scales", "0.67, 1, 1.3, 2.0"]
    return argv


def images(folder: Path) -> Path:
    """A data set with captions, which only prompts with {caption} read."""
    data = folder / "images"
    if not data.exists():
        make_scale_folders(data, size=(96, 80))
        for name, caption in {"one": "a small disc", "two": "a large disc"}.items():
            (data / "low" / f"{name}.txt").write_text(caption, encoding="utf-8")
    return data


def slider_of(name: str, folder: Path) -> Path | None:
    return next(run_folder(name, folder).rglob("*_last.safetensors"), None)


def model_hash(slider: Path | None) -> str:
    if slider is None:
        return FAILED
    with safe_open(slider, framework="pt") as file:
        return file.metadata()["sshs_model_hash"]


def run(name: str, root: Path, folder: Path, resume: bool) -> str:
    """Trains in this process and returns the slider's hash, or FAILED; what the run prints is then shown on stderr."""
    configuration, argv = CONFIGURATIONS[name], command_line(name, root, folder)
    stages = [["--overwrite"]]
    if resume:
        stages = [["--resume"]]
    elif configuration.resumed:
        stages = [["--overwrite", "--iterations", str(HALF)], ["--resume"]]
    log = run_folder(name, folder) / "log"
    with log.open("w", encoding="utf-8") as out, redirect_stdout(out), redirect_stderr(out):
        ended = all(train_stage(root, configuration.script, [*argv, *stage]) for stage in stages)
    if not ended:
        print(log.read_text(encoding="utf-8"), file=sys.stderr)
        return FAILED
    return model_hash(slider_of(name, folder))


def train_stage(root: Path, script: str, argv: list[str]) -> bool:
    """Whether the entry script ended with status 0. An exception is printed, so that the other configurations still run."""
    try:
        return run_script(root / "trainscripts" / script, argv) == 0
    except Exception:
        traceback.print_exc()
        return False


def import_from(root: Path) -> None:
    """Makes the checkout `root` the one whose package is imported. One process can import only one."""
    if "sliders" not in sys.modules:
        sys.path.insert(0, str(root / "trainscripts"))
    import sliders

    if not Path(sliders.__file__).resolve().is_relative_to(root.resolve()):
        raise ImportError(f"sliders was imported from {sliders.__file__}, not from {root}")


def main(root: Path, folder: Path, names=tuple(CONFIGURATIONS), resume: bool = False) -> dict[str, str]:
    """Returns {configuration: hash}. resume: continue runs in `folder` from their newest checkpoints."""
    import_from(root)
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    with one_thread():
        for name in names:
            began = time.monotonic()
            found[name] = run(name, root, folder, resume)
            print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """The order in which numbers are added up depends on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def table(hashes: dict[str, str]) -> str:
    rows = {"configuration": "sshs_model_hash", **hashes}
    return "".join(f"{name:<{max(map(len, rows))}}  {value}\n" for name, value in rows.items())


def read_table(text: str) -> dict[str, str]:
    rows = (line.rpartition("  ") for line in text.splitlines()[1:])
    return {name.rstrip(): value for name, _, value in rows}


def hashes_from(earlier: Path) -> dict[str, str]:
    """Of a table's file, or of a folder with sliders."""
    if earlier.is_dir():
        return {name: model_hash(slider_of(name, earlier)) for name in CONFIGURATIONS}
    return read_table(earlier.read_text(encoding="utf-8"))


def differing(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names of the rows of `after` that `before` has not got with the same hash. A failed run equals nothing."""
    return [name for name, value in after.items() if value == FAILED or before.get(name) != value]


def distance(before: Path, after: Path) -> float:
    """Between two sliders' weights: the norm of the difference over the norm of those before."""
    first, second = load_file(before), load_file(after)
    if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in second.items()}:
        return float("inf")
    keys = [key for key in first if not key.endswith(".alpha")]
    first, second = (torch.cat([tensors[key].double().flatten() for key in keys]) for tensors in (first, second))
    return float((second - first).norm() / first.norm())


def describe(name: str, earlier: Path, folder: Path) -> str:
    """A row that differs, with the distance where both sliders are there."""
    pair = [slider_of(name, place) if place.is_dir() else None for place in (earlier, folder)]
    return name if None in pair else f"{name}: weights differ by {distance(*pair):.1e} of their norm"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout that trains (default: this one)")
    parser.add_argument(
        "--only", action="append", choices=CONFIGURATIONS, metavar="CONFIGURATION", help="can be repeated"
    )
    parser.add_argument("--folder", type=Path, help="keep the runs here (default: a temporary folder)")
    parser.add_argument("--against", type=Path, help="a table printed earlier, or the --folder of that call")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = (arguments.folder or Path(temporary)).resolve()
        hashes = main(arguments.root.resolve(), place, arguments.only or tuple(CONFIGURATIONS))
        print(table(hashes), end="")
        wrong = [name for name, value in hashes.items() if value == FAILED]
        if arguments.against:
            wrong = differing(hashes_from(arguments.against), hashes)
            for row in wrong:
                print(f"differs: {describe(row, arguments.against, place)}", file=sys.stderr)
    sys.exit(1 if wrong else 0)
