"""Time the training step on a full-size SDXL with random weights, beside the work that the ancestors' step does.

    uv run trainscripts/imagesliders/bench_step.py --resolutions 512 1024 --modes naive eager graph regional

Per resolution and number of pairs: median seconds of a step, how many times faster than the naive step, the share of
the arithmetic floor (its floating-point operations at the rate of a large bfloat16 matrix product on this GPU), peak
memory, seconds from the loaded model to the end of the first step. On a machine without a GPU use `--model tiny --modes naive eager`.
"""

import argparse
import gc
import json
import math
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_world import build_model, make_settings, step_flops, synchronize, write_noise_images
from naive_step import NaiveStep
from sliders.device import use_device
from sliders.models.layers import select_layers
from sliders.trainer import Trainer

MODES = {  # name → other.cuda_graph, other.torch_compile
    "eager": ("off", "off"),
    "graph": ("auto", "off"),
    "regional": ("auto", "regional"),
    "full": ("auto", "full"),
}
WARM_UP, BLOCKS = 3, 5
KINDS = {  # of kernels, by their names
    "attention": "sdpa|fmha|flash|cudnn::fusion",
    "convolution": "fprop|dgrad|wgrad|conv",
    "matrix products": "nvjet|gemm|splitK",
    "this project's kernels": "geglu|_normalise|_channel_|_group_s|_add_layer_norm",
    "layer and group norm": "layer_norm|group_norm|GroupNorm|LayerNorm",
    "optimizer and gathering": "multi_tensor_apply",
    "copies": "copy|Memcpy|Memset",
    "elementwise": "elementwise|CatArray",
}


def median_seconds(step, device: str, steps: int) -> float:
    """Of blocks of steps, since a step that waits for nothing cannot be timed by itself."""
    found = []
    for _ in range(BLOCKS):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        found.append((time.perf_counter() - began) / steps)
    return sorted(found)[BLOCKS // 2]


def measure_naive(args: argparse.Namespace, resolution: int, device: str) -> dict:
    model = build_model(args.model, args.precision, device)
    layers = select_layers(model.unet, "c3lier", "noxattn")
    naive = NaiveStep(model, layers, args.rank, resolution, device)
    losses = [naive.step() for _ in range(WARM_UP)]
    seconds = median_seconds(lambda: losses.append(naive.step()), device, 1)
    return {"seconds": seconds, "finite": all(map(math.isfinite, losses))}


def measure_mode(args: argparse.Namespace, mode: str, resolution: int, pairs: int, device: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        data = write_noise_images(Path(folder) / "data", resolution)
        graph, compiled = MODES[mode]
        settings = make_settings(args, Path(folder), resolution, pairs, graph, compiled)
        model = build_model(args.model, args.precision, device)
        synchronize(device)
        began = time.perf_counter()
        trainer = Trainer(settings, data, model)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    first = trainer.step(0)
    finite = math.isfinite(first.loss)
    first_step = time.perf_counter() - began
    results = [first, *(trainer.step(i) for i in range(1, WARM_UP))]
    steps = iter(range(WARM_UP, 10**9))
    seconds = median_seconds(lambda: results.append(trainer.step(next(steps))), device, args.steps)
    losses = [loss for loss, _ in trainer.read(results)]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else None
    if args.profile:
        print_profile(trainer, next(steps))
    return {
        "seconds": seconds, "first_step": first_step, "peak_gib": peak, "losses": losses, "finite": finite,
        "parameters": trainer.network.num_parameters(),
    }  # fmt: skip


def print_profile(trainer: Trainer, step: int) -> None:
    """Where one step's time on the GPU goes: by kind of kernel, then the longest kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        trainer.step(step)
        torch.cuda.synchronize()
    rows = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    kinds: dict[str, list[float]] = {}
    for row in rows:
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, row.key)), "other")
        found = kinds.setdefault(kind, [0.0, 0])
        found[0] += row.self_device_time_total / 1000
        found[1] += row.count
    total = sum(ms for ms, _ in kinds.values())
    print(f"  kernels: {total:.1f} ms in {sum(e.count for e in rows)}")
    for kind, (ms, count) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        print(f"  {ms:8.2f} ms {count:6d} × {kind}")
    for row in rows[:12]:
        print(f"  {row.self_device_time_total / 1000:8.2f} ms {row.count:6d} × {row.key[:90]}")


def peak_rate(device: str, size: int = 8192, runs: int = 20) -> float:
    """FLOP/s of a bfloat16 matrix product of random matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = median_seconds(lambda: a @ b, device, runs)
    return 2 * size**3 / seconds


def compare_losses(results: list[dict]) -> list[str]:
    """Each mode's losses against eager's of the same resolution and pairs, over the steps that both made."""
    lines = []
    eager = {(r["resolution"], r["pairs"]): r["losses"] for r in results if r["mode"] == "eager"}
    for r in results:
        wanted = eager.get((r["resolution"], r["pairs"]))
        if wanted and r["mode"] not in ("eager", "naive"):
            off = [abs(a / b - 1) for a, b in zip(r["losses"], wanted, strict=False)]
            lines.append(
                f"losses of {r['mode']} at {r['resolution']} px, {r['pairs']} pair(s) against eager over {len(off)} steps: "
                f"relative difference {sum(off) / len(off):.1e} on average, {max(off):.1e} at most"
            )
    return lines


def row_text(row: dict) -> str:
    def shown(key: str, form: str) -> str:
        return "–" if row.get(key) is None else format(row[key], form)

    return (
        f"{row['resolution']:5d} px {row['pairs']} pair(s) {row['mode']:9s} {row['seconds']:.4f} s/step  "
        f"{shown('times', '.1f'):>5}× naive  {shown('share', '.0%'):>4} of the floor  peak {shown('peak_gib', '.1f')} GiB  "
        f"first step {shown('first_step', '.1f')} s  finite {row['finite']}"
    )


def planned(args: argparse.Namespace) -> list[tuple[int, str]]:
    """(pairs, mode): the naive step knows one pair only, and eager is there to compare with."""
    counts = {"naive": [1], "eager": args.pairs[:1]}
    return [(pairs, mode) for mode in args.modes for pairs in counts.get(mode, args.pairs)]


def main() -> int:
    args = parse_args()
    device = use_device(args.device)
    cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    rate = peak_rate(device) if cuda else None
    print(
        f"{name}, torch {torch.__version__}, {args.model} model, {args.precision}, rank {args.rank}, {args.optimizer}"
    )
    if rate:
        print(f"bfloat16 matrix product: {rate / 1e12:.0f} TFLOP/s", flush=True)
    results = []
    for resolution in args.resolutions:
        naive = None
        for pairs, mode in planned(args):
            gc.collect()  # what the mode before held must not count in this one's peak
            row = {"resolution": resolution, "pairs": pairs, "mode": mode}
            if mode == "naive":
                row |= measure_naive(args, resolution, device)
                naive = row["seconds"]
            else:
                row |= measure_mode(args, mode, resolution, pairs, device)
                row["times"] = naive * pairs / row["seconds"] if naive else None
                row["share"] = step_flops(args, resolution, pairs) / rate / row["seconds"] if rate else None
            results.append(row)
            print(row_text(row), flush=True)
    print(*compare_losses(results), sep="\n")
    if args.json:
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "rate": rate, "results": results}))
    return 0 if all(r["finite"] for r in results) else 1


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("full", "tiny"), default="full")
    parser.add_argument("--modes", nargs="+", choices=("naive", *MODES), default=["naive", "eager", "graph"])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1], help="pairs of images in a step")
    parser.add_argument("--rank", type=int, default=96)
    parser.add_argument("--steps", type=int, default=10, help="in each of the five blocks that are timed")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--profile", action="store_true", help="list the kernels of one step")
    parser.add_argument("--device", default="0")
    parser.add_argument("--json", type=Path, help="write the results there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
