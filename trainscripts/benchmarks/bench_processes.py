"""Time the training step in several processes, one for each GPU, and compare it with one process alone.

    uv run accelerate launch --num_processes 2 trainscripts/benchmarks/bench_processes.py

First every process trains by itself, all at the same time, then all train one slider. Prints pairs per second of both for
each resolution. The model is a full-size SDXL with random weights, the same in all processes; without a GPU, the demo's.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from bench_step import DEMO, MODES, WARM_UP, free_memory, median_seconds
from bench_world import add_step_flags, build_model, make_settings, synchronize, unchecked_plan, write_noise_images
from sliders.compute.device import torch_device, use_device
from sliders.system.launch import only_errors
from sliders.system.processes import Processes, joined
from sliders.train.monitor import sum_of_bits
from sliders.train.trainer import Trainer


def seconds_per_step(args: argparse.Namespace, resolution: int, device: str, processes: Processes) -> float:
    """Raises InputError if the processes' weights differ at the end."""
    free_memory(device)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = write_noise_images(root / "data", resolution)
        settings = make_settings(args, root, resolution, args.pairs, MODES[args.mode])
        trainer = Trainer(
            unchecked_plan(settings, device, data), build_model(args.model, args.precision, device), processes
        )
    steps = iter(range(10**9))
    for _ in range(WARM_UP):
        trainer.step(next(steps))
    synchronize(device)
    found = median_seconds(lambda: trainer.step(next(steps)), device, args.steps)
    processes.check_equal(sum_of_bits(trainer.weights.master), "the weights are")
    return found


def measure(args: argparse.Namespace, resolution: int, device: str, processes: Processes) -> dict:
    """Pairs per second. A step of several processes takes as long as the slowest one's."""
    count = processes.count
    alone = processes.gather(seconds_per_step(args, resolution, device, Processes()))
    together = processes.gather(seconds_per_step(args, resolution, device, processes))
    return {
        "resolution": resolution,
        "processes": count,
        "one": args.pairs / max(alone),
        "all": count * args.pairs / max(together),
    }


def main() -> int:
    args = parse_args()
    device = torch_device(args.device)
    use_device(device)
    cuda = device.startswith("cuda")
    given = {key: value for key, value in vars(args).items() if value is not None}
    full = {"model": "full", "mode": "graph", "resolutions": [512, 1024], "precision": "bfloat16"}
    demo = {"model": str(DEMO), "mode": "eager", "resolutions": [128], "precision": "float32"}
    vars(args).update({**(full if cuda else demo), **given})
    with only_errors(), joined() as processes:
        name = torch.cuda.get_device_name(device) if cuda else "CPU"
        print(
            f"{processes.count} × {name}, torch {torch.__version__}, {args.model} model, rank {args.rank}", flush=True
        )
        results = []
        for resolution in args.resolutions:
            row = measure(args, resolution, device, processes)
            results.append(row)
            print(
                f"{resolution:5d} px, {args.pairs} pair(s) in each process: {row['one']:.2f} pairs/s with 1 process, "
                f"{row['all']:.2f} with {row['processes']}: {row['all'] / row['one']:.2f} times",
                flush=True,
            )
        if args.json and processes.first:
            args.json.write_text(json.dumps({"device": name, "results": results}))
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_step_flags(parser)
    parser.add_argument("--mode", choices=MODES, help="default: graph on a GPU, elsewhere eager")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of images per step in each process (default: 1)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
