"""The command that trains sliders with different settings on different attributes and seeds, and prints a table of what they show.

On a GPU many sliders train at a time: `--devices 0 1 --workers 8`. Results are kept as they come, one line each: the
same command again makes only the runs that are missing.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from sliders.adaptors import ALGORITHMS
from sliders.compute.device import torch_device
from sliders.config.settings import load_settings
from sliders.train.runs import run_all

from worlds.base import World
from worlds.evaluate import evaluate
from worlds.models import attached, device_of, family_name, family_of, load_model, world_sampling

SHIFT = "shift"  # before a number in --biases
OTHER_SAMPLINGS = {
    "guidance 1": {"guidance": 1.0},
    "guidance 7": {"guidance": 7.0},
    "Euler a": {"sampler": "euler_a"},
    "DPM++ 2M": {"sampler": "dpm++_2m"},
    "30 steps": {"steps": 30},
}


@dataclass(frozen=True)
class Job:
    """One slider to train and measure."""

    attribute: str
    bias: str  # train.timestep_bias, or SHIFT and train.timestep_shift
    seed: int
    scenes: int
    steps: int
    pairs: int
    lr: float
    method: str
    caption_dropout: float
    captions: str  # a key of CAPTIONS
    ends: bool  # train on the first and the last folder alone
    algo: str  # network.algo, with its rank and factor
    rank: int
    factor: int | None

    @classmethod
    def of(cls, result: dict) -> "Job":
        """The job that a line of the results came from."""
        return cls(**{field.name: result[field.name] for field in fields(cls)})

    @property
    def stem(self) -> str:
        """Name of the slider's file."""
        captions = "" if self.captions == "own" else f"_{self.captions}_captions"
        algo = "" if self.algo == "lora" else f"_{self.algo}{self.factor or ''}_rank{self.rank}"
        steps = f"{self.scenes}scenes_{self.steps}x{self.pairs}"
        return f"{self.attribute}_bias{self.bias}_{steps}_seed{self.seed}{captions}{algo}"


@dataclass(frozen=True)
class Bench:
    """What all jobs of a command share."""

    world: World
    model: Path
    robustness: bool  # whether to measure under OTHER_SAMPLINGS too
    keep: Path | None  # a folder for the slider files


def train_and_measure(bench: Bench, job: Job, device: str) -> dict:
    """From nothing to its curve. device: as `--device` has it."""
    world = bench.world
    torch.set_num_threads(1)  # as many processes run as there are cores
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        (report,) = run_all(
            load_settings([*_write_experiment(root, bench, job), "--device", device], family_name(bench.model))[0]
        )
        if bench.keep is not None:
            shutil.copy(report.path, bench.keep / f"{job.stem}.safetensors")
        model = load_model(bench.model, torch_device(device))
        network = attached(report.path, model)
        curve = evaluate(world, model, network, job.attribute)
        found = {**vars(job), **curve.as_json()}
        if bench.robustness:
            multipliers = (0.0, *world.attributes[job.attribute].scales)
            sampling = world_sampling(world.image_size, device_of(model))
            found["robustness"] = {
                name: evaluate(
                    world, model, network, job.attribute, multipliers, replace(sampling, **other)
                ).calibration
                for name, other in OTHER_SAMPLINGS.items()
                if other.get("sampler") in (None, *family_of(model).samplers)
            }
    return found


def _remove(captions: list[Path]) -> None:
    for path in captions:
        path.unlink()


def _exchange(captions: list[Path]) -> None:
    """Gives each image the caption of the next."""
    texts = [path.read_text(encoding="utf-8") for path in captions]
    for path, text in zip(captions, texts[1:] + texts[:1], strict=True):
        path.write_text(text, encoding="utf-8")


CAPTIONS: dict[str, Callable[[list[Path]], None]] = {"own": lambda captions: None, "none": _remove, "wrong": _exchange}


def _write_experiment(root: Path, bench: Bench, job: Job) -> list[str]:
    """Data, config and prompts under `root`; returns the trainer's command line."""
    world = bench.world
    world.write_dataset(job.attribute, root / "data", job.scenes)
    CAPTIONS[job.captions](sorted((root / "data").rglob("*.txt")))
    config = {
        "prompts_file": str(root / "prompts.yaml"),
        "pretrained_model": {"name_or_path": str(bench.model)},
        "network": {
            "type": "c3lier",
            "training_method": job.method,
            "algo": job.algo,
            "rank": job.rank,
            "alpha": job.rank,
            "factor": job.factor,
        },
        "train": {
            "precision": "float32",
            "iterations": job.steps,
            "lr": job.lr,
            "lr_scheduler": "linear",
            "optimizer_args": "betas=(0.9,0.99)",
            "max_denoising_steps": 1000,
            **_timesteps(job.bias),
            "caption_dropout": job.caption_dropout,
            "max_grad_norm": 0.2,
            "seed": job.seed,
        },
        "save": {"path": str(root / "models"), "per_steps": 10**6},
    }
    prompts = [{"target": "", "resolution": world.image_size, "batch_size": job.pairs}]
    (root / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (root / "prompts.yaml").write_text(json.dumps(prompts))
    table = world.attributes[job.attribute]
    every = slice(None, None, len(table.folders) - 1 if job.ends else 1)
    folders, scales = ", ".join(table.folders[every]), ", ".join(map(str, table.scales[every]))
    paths = ["--config_file", str(root / "config.yaml"), "--folder_main", str(root / "data")]
    return [*paths, "--folders", folders, "--scales", scales]


def _timesteps(bias: str) -> dict:
    """The settings of `train` that a job's bias stands for."""
    if bias.startswith(SHIFT):
        return {"timestep_shift": float(bias.removeprefix(SHIFT))}
    return {"timestep_bias": bias if bias == "auto" else float(bias)}


def format_table(world: World, results: list[dict]) -> str:
    """Markdown, a line for each attribute and bias: means over the seeds, and for calibration each seed's."""
    own = list(world.columns)[:2]
    lines = [
        f"| attribute | bias | calibration (each seed) | at the trained scales (spread) | {' | '.join(f'{c} there' for c in own)} | "
        f"below and beyond: measured | {' | '.join(own)} |",
        "|---|---|---:|---|---|---|---|---|---|",
    ]
    for attribute, bias in dict.fromkeys((r["attribute"], r["bias"]) for r in results):
        runs = [r for r in results if (r["attribute"], r["bias"]) == (attribute, bias)]
        lines.append(_row(world, attribute, bias, sorted(runs, key=lambda r: r["seed"])))
    return "\n".join(lines)


def _row(world: World, attribute: str, bias: str, runs: list[dict]) -> str:
    scales = world.attributes[attribute].scales
    outside = [m for m in runs[0]["multipliers"] if not scales[0] <= m <= scales[-1] and m != 0]

    def means(column: str, multipliers) -> list[float]:
        return [statistics.mean(r[column][r["multipliers"].index(m)] for r in runs) for m in multipliers]

    def shown(values: list[float], form: str) -> str:
        return " / ".join("–" if math.isnan(value) else format(value, form) for value in values)

    calibrations = [r["calibration"] for r in runs]
    spreads = zip(means("mean", scales), means("spread", scales), strict=True)
    own = list(world.columns.items())[:2]
    cells = [
        f"**{statistics.mean(calibrations):.2g}** ({', '.join(f'{c:.2g}' for c in calibrations)})",
        " / ".join(f"{mean:.3g} ({spread:.2g})" for mean, spread in spreads),
        *(shown(means(name, scales), column.form) for name, column in own),
        f"{shown(means('mean', outside), '.3g')} at {shown(outside, 'g')}",
        *(shown(means(name, outside), column.form) for name, column in own),
    ]
    return f"| {attribute} | {bias} | {' | '.join(cells)} |"


def format_robustness(results: list[dict]) -> str:
    """Markdown: calibration under other samplings, means over the seeds."""
    runs = [r for r in results if "robustness" in r]
    if not runs:
        return ""
    names = list(runs[0]["robustness"])
    lines = [f"| attribute | bias | as above | {' | '.join(names)} |", f"|---|---|{'---:|' * (1 + len(names))}"]
    for attribute, bias in dict.fromkeys((r["attribute"], r["bias"]) for r in runs):
        those = [r for r in runs if (r["attribute"], r["bias"]) == (attribute, bias)]
        values = [statistics.mean(r["calibration"] for r in those)]
        values += [statistics.mean(r["robustness"][name] for r in those) for name in names]
        lines.append(f"| {attribute} | {bias} | {' | '.join(f'{value:.2g}' for value in values)} |")
    return "\n".join(lines)


def parse_arguments(world: World, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--results", type=Path, required=True, metavar="JSONL", help="where results are kept")
    add("--attributes", nargs="+", choices=world.attributes, default=world.compared)
    add(
        "--biases",
        nargs="+",
        default=("0", "2", "3", "auto"),
        help="of train.timestep_bias; shift3: train.timestep_shift 3",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--scenes", type=int, default=world.fewest_scenes)
    add("--steps", type=int, default=750)
    add("--pairs", type=int, default=4, help="half the images in a step")
    add("--lr", type=float, default=2e-3)
    add("--method", default="noxattn", help="network.training_method")
    add("--caption_dropout", type=float, default=0.0)
    add("--captions", choices=CAPTIONS, default="own", help="of the images: none, or those of other images")
    add("--ends", action="store_true", help="train on the first and the last folder alone")
    add("--algo", choices=ALGORITHMS, default="lora")
    add("--rank", type=int, default=16, help="alpha is the same")
    add("--factor", type=int, help="of --algo lokr")
    add("--robustness", action="store_true", help="measure other guidances, samplers and steps too")
    add("--model", type=Path, default=world.model, help="the world's model")
    add("--keep", type=Path, metavar="FOLDER", help="keep the slider files")
    add("--devices", nargs="+", default=["cpu"], help="cpu, or CUDA indices; workers take them in turn")
    add("--workers", type=int, default=os.cpu_count(), help="sliders at a time, over all devices")
    return parser.parse_args()


def main(world: World, description: str) -> int:
    args = parse_arguments(world, description)
    common = {field.name: getattr(args, field.name) for field in fields(Job) if field.name in args}
    wanted = [
        Job(attribute, bias, seed, **common)
        for attribute, bias, seed in product(args.attributes, args.biases, args.seeds)
    ]
    results = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {Job.of(result) for result in results}
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    bench = Bench(world, args.model, args.robustness, args.keep)
    jobs = [job for job in wanted if job not in done]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        waiting = {
            pool.submit(train_and_measure, bench, job, args.devices[i % len(args.devices)]): job
            for i, job in enumerate(jobs)
        }
        for n, finished in enumerate(as_completed(waiting), start=1):
            results.append(finished.result())
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(results[-1]) + "\n")
            job = waiting[finished]
            print(
                f"{n}/{len(jobs)} {job.attribute} {job.bias} {job.seed}: {results[-1]['calibration']:.3g}", flush=True
            )
    found = {Job.of(result): result for result in results}
    chosen = [found[job] for job in wanted]
    print(format_table(world, chosen), format_robustness(chosen), sep="\n\n")
    return 0
