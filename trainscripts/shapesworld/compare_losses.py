"""Train every objective on every attribute with several seeds, measure each slider, and print the table of README.md.

    uv run trainscripts/shapesworld/compare_losses.py --results results.jsonl --workers 2

Each run takes one thread for some minutes. Results are kept as they come, one line each: the same command again makes
only the runs that are missing.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from sliders.config.settings import load_settings
from sliders.formats.slider_file import open_slider
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.train.losses import LOSSES
from sliders.train.runs import run_all

from shapesworld.attributes import ATTRIBUTES, training_scenes
from shapesworld.evaluate import MODEL, evaluate, load_model
from shapesworld.make_dataset import write_dataset
from shapesworld.world import IMAGE_SIZE, captions


def train_and_measure(loss: str, attribute: str, seed: int, settings: dict) -> dict:
    """One slider from nothing to its curve."""
    torch.set_num_threads(1)  # as many processes run as there are cores
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        argv = _write_experiment(root, loss, attribute, settings)
        (report,) = run_all(load_settings([*argv, "--seed", str(seed)])[0])
        model = load_model()
        curve = evaluate(model, open_slider(report.path, model.unet, SDXL_FAMILY), attribute)
    return {"loss": loss, "attribute": attribute, "seed": seed, **settings, **curve.as_json()}


def _write_experiment(root: Path, loss: str, attribute: str, settings: dict) -> list[str]:
    """Data, config and prompts under `root`; returns the trainer's command line."""
    write_dataset(attribute, root / "data")
    config = {
        "prompts_file": str(root / "prompts.yaml"),
        "pretrained_model": {"name_or_path": str(MODEL)},
        "network": {"type": "c3lier", "training_method": "noxattn", "rank": 16, "alpha": 16.0},
        "train": {
            "precision": "float32",
            "iterations": settings["steps"],
            "lr": settings["lr"],
            "lr_scheduler": "cosine",
            "max_denoising_steps": 1000,
            "loss": loss,
            "max_grad_norm": settings["max_grad_norm"],
        },
        "save": {"path": str(root / "models"), "per_steps": 10**6},
    }
    texts = ["", *captions(training_scenes(attribute, 1.0))] if settings["captions"] else [""]
    prompts = [
        {"target": t, "neutral": t, "resolution": IMAGE_SIZE, "batch_size": settings["pairs"]}
        for t in dict.fromkeys(texts)
    ]
    (root / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (root / "prompts.yaml").write_text(json.dumps(prompts))
    table = ATTRIBUTES[attribute]
    folders, scales = ", ".join(table.folders), ", ".join(map(str, table.scales))
    paths = ["--config_file", str(root / "config.yaml"), "--folder_main", str(root / "data")]
    return [*paths, "--folders", folders, "--scales", scales, "--device", "cpu"]


def format_table(results: list[dict]) -> str:
    """Markdown: mean over the seeds, and for calibration each seed's."""
    lines = [
        "| attribute | objective | calibration (each seed) | at the trained scales (spread) | rising | mess at 1 / highest |",
        "|---|---|---:|---|---:|---:|",
    ]
    for attribute, loss in product(ATTRIBUTES, LOSSES):
        runs = sorted((r for r in results if (r["attribute"], r["loss"]) == (attribute, loss)), key=lambda r: r["seed"])
        if runs:
            lines.append(_row(attribute, loss, runs))
    return "\n".join(lines)


def _row(attribute: str, loss: str, runs: list[dict]) -> str:
    scales = ATTRIBUTES[attribute].scales

    def mean(column: str, scale: float) -> float:
        return statistics.mean(r[column][r["multipliers"].index(scale)] for r in runs)

    calibrations = [r["calibration"] for r in runs]
    each = ", ".join(f"{c:.1f}" for c in calibrations)
    values = " / ".join(f"{mean('mean', s):.1f} ({mean('spread', s):.0f})" for s in scales)
    rising = f"{sum(r['ordered'] for r in runs)} of {len(runs)}"
    mess = f"{mean('mess', 1.0):.3f} / {mean('mess', scales[-1]):.3f}"
    return f"| {attribute} | {loss} | **{statistics.mean(calibrations):.1f}** ({each}) | {values} | {rising} | {mess} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, metavar="JSONL", help="where results are kept")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=tuple(LOSSES))
    parser.add_argument("--attributes", nargs="+", choices=ATTRIBUTES, default=tuple(ATTRIBUTES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=2, help="pairs of images in a step")
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--max_grad_norm", type=float, default=0.5)
    parser.add_argument("--captions", action="store_true", help="prompts: none, and the training scenes' captions")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ("steps", "lr", "pairs", "max_grad_norm", "captions")}
    results = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {tuple(r[k] for k in ("loss", "attribute", "seed", *settings)) for r in results}
    jobs = [j for j in product(args.losses, args.attributes, args.seeds) if (*j, *settings.values()) not in done]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(train_and_measure, *job, settings): job for job in jobs}
        for n, finished in enumerate(as_completed(waiting), start=1):
            results.append(finished.result())
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(f"{n} of {len(jobs)}: {waiting[finished]} calibration {results[-1]['calibration']:.2f}", flush=True)
    print(format_table([r for r in results if all(r[k] == v for k, v in settings.items())]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
