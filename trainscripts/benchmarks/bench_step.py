"""Time the training step on a full-size model with random weights, and compare it with a naive step.

    uv run trainscripts/benchmarks/bench_step.py --resolutions 512 1024 --modes naive eager graph regional
    uv run trainscripts/benchmarks/bench_step.py --family flux2 --rank 32 --modes naive graph

The naive step is that of the original trainers for SDXL, and one with diffusers and PEFT alone for flow models.

Prints for each resolution and number of pairs:
- the median seconds per step, and the speedup per pair over the naive step;
- how close the step comes to its floor, the time of its floating-point operations at the rate of a large bfloat16 matrix
  product on this GPU;
- peak GPU memory of the steps, peak memory of loading and encoding, and the most memory that PyTorch reserved;
- the seconds from a model in main memory to the end of the first step, and of the second, which captures the graph.

Without a GPU, it uses the demo's model.
"""

import argparse
import gc
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_world import (
    add_step_flags,
    build_model,
    make_settings,
    step_flops,
    synchronize,
    unchecked_plan,
    write_noise_images,
)
from naive_flow_step import NaiveFlowStep
from naive_step import NaiveStep
from sliders.compute.device import torch_device, use_device
from sliders.fast.kernel_support import own_kernels
from sliders.models.base import Model
from sliders.models.layers import select_layers
from sliders.train.trainer import Trainer

DEMO = Path(__file__).parent.parent / "shapesworld" / "model"
MODES = {  # {name: what is set in the config's section other}
    "eager": {"cuda_graph": "off"},
    "graph": {},
    "plain": {"fast_path": "off"},
    "regional": {"torch_compile": "regional"},
    "full": {"torch_compile": "full"},
}
WARM_UP, BLOCKS = 3, 5
KINDS = {  # {kind of kernel: pattern of kernel names}, for those that are not this project's; the first match counts
    "attention": "sdpa|fmha|flash|cudnn::fusion",
    "convolution": "fprop|dgrad|wgrad|conv",
    "matrix products": "nvjet|gemm|splitK|cutlass",
    "layer and group norm": "layer_norm|group_norm|GroupNorm|LayerNorm",
    "optimizer and gathering": "multi_tensor_apply",
    "copies": "copy|Memcpy|Memset",
    "elementwise": "elementwise|CatArray",
}


def median_seconds(step: Callable[[], object], device: str, steps: int) -> float:
    """Median time per step over blocks of `steps`: steps run asynchronously, so they cannot be timed individually."""
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
    naive = build_naive(args, resolution, device)
    losses = [naive.step() for _ in range(WARM_UP)]
    seconds = median_seconds(lambda: losses.append(naive.step()), device, 1)
    peak = peak_memory(device)
    return {"seconds": seconds, "finite": all(map(math.isfinite, losses)), "peak_gib": peak and peak[0]}


def build_naive(args: argparse.Namespace, resolution: int, device: str) -> NaiveStep | NaiveFlowStep:
    if args.family == "sdxl":
        model = build_model(args.model, args.precision, device)
        layers = select_layers(model.denoiser, "c3lier", "noxattn")
        return NaiveStep(model, layers, args.rank, resolution, device)
    return NaiveFlowStep(
        args.family, build_model("full", args.precision, "meta", args.family), args.rank, resolution, device
    )


def measure_mode(args: argparse.Namespace, mode: str, resolution: int, pairs: int, device: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        data = write_noise_images(Path(folder) / "data", resolution)
        settings = make_settings(args, Path(folder), resolution, pairs, MODES[mode])
        model = build_in_main_memory(args, device)
        began = time.perf_counter()
        trainer = Trainer(unchecked_plan(settings, device, data), model)
    loading = peak_memory(device)
    start = trainer.weights.master.detach().cpu().clone()
    results, ready = [], []
    for step in range(WARM_UP):
        results.append(trainer.step(step))
        synchronize(device)
        ready.append(time.perf_counter() - began)
    steps = iter(range(WARM_UP, 10**9))
    seconds = median_seconds(lambda: results.append(trainer.step(next(steps))), device, args.steps)
    losses = torch.stack([r.values for r in results])[:, 0].tolist()  # read here, because the trainer stops at NaN
    peak, weights = peak_memory(device), trainer.weights.master.detach().cpu().clone()
    if args.profile:
        print_profile(trainer, next(steps), args.profile)
    return {
        "seconds": seconds, "first_step": ready[0], "second_step": ready[1], "losses": losses,
        "finite": all(map(math.isfinite, losses)), "parameters": trainer.network.num_parameters(),
        "weights": weights, "moved": (weights - start).norm().item(), "peak_gib": peak and peak[0],
        "loading_gib": loading and loading[0], "reserved_gib": peak and max(peak[1], loading[1]),
    }  # fmt: skip


def build_in_main_memory(args: argparse.Namespace, device: str) -> Model:
    """The model in main memory, where a run loads it, so that the time to move it is measured too."""
    model = build_model(args.model, args.precision, device, args.family)
    model.denoiser.to("cpu")
    model.vae.to("cpu")
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return model


def peak_memory(device: str) -> tuple[float, float] | None:
    """(peak allocated, peak reserved) in GiB since the last call or the last new trainer. None without a GPU."""
    if not device.startswith("cuda"):
        return None
    found = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return found


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    if kernel in own_kernels():
        return "this project's kernels"
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel)), "other")


def print_profile(trainer: Trainer, step: int, longest: int) -> None:
    """Prints the GPU time of one step by kind of kernel, then the `longest` kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        trainer.step(step)
        torch.cuda.synchronize()
    rows = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    kinds: dict[str, list[float]] = {}
    for row in rows:
        kind = kind_of(row.key)
        found = kinds.setdefault(kind, [0.0, 0])
        found[0] += row.self_device_time_total / 1000
        found[1] += row.count
    total = sum(ms for ms, _ in kinds.values())
    print(f"  kernels: {total:.1f} ms in {sum(e.count for e in rows)}")
    for kind, (ms, count) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        print(f"  {ms:8.2f} ms {count:6d} × {kind}")
    for row in rows[:longest]:
        print(f"  {row.self_device_time_total / 1000:8.2f} ms {row.count:6d} × {row.key[:90]}")


def peak_rate(device: str, size: int = 8192, runs: int = 20) -> float:
    """FLOP/s of a bfloat16 product of random matrices, measured after one second of warm-up, which raises the clock."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    began = time.perf_counter()
    while time.perf_counter() - began < 1:
        a @ b
        synchronize(device)
    seconds = median_seconds(lambda: a @ b, device, runs)
    return 2 * size**3 / seconds


def compare(results: list[dict]) -> list[str]:
    """Compares each mode with eager at the same resolution and pairs: the losses of all steps and the final weights."""
    lines = []
    eager = {(r["resolution"], r["pairs"]): r for r in results if r["mode"] == "eager"}
    for r in results:
        wanted = eager.get((r["resolution"], r["pairs"]))
        if wanted and r["mode"] not in ("eager", "naive"):
            off = [abs(a / b - 1) for a, b in zip(r["losses"], wanted["losses"], strict=True)]
            r["apart"] = (r["weights"] - wanted["weights"]).norm().item() / wanted["moved"]
            lines.append(
                f"{r['mode']} against eager at {r['resolution']} px, {r['pairs']} pair(s), {len(off)} steps: losses differ by "
                f"{sum(off) / len(off):.1e} on average, {max(off):.1e} at most; weights by {r['apart']:.1e} of their total change"
            )
    return lines


def row_text(row: dict) -> str:
    def shown(key: str, form: str) -> str:
        return "–" if row.get(key) is None else format(row[key], form)

    return (
        f"{row['resolution']:5d} px {row['pairs']} pair(s) {row['mode']:9s} {row['seconds']:.4f} s/step  "
        f"{shown('times', '.1f'):>5}× naive  {shown('share', '.0%'):>4} of the floor  peak {shown('peak_gib', '.1f')} GiB, "
        f"loading {shown('loading_gib', '.1f')}, reserved {shown('reserved_gib', '.1f')}  first steps done at "
        f"{shown('first_step', '.1f')} and {shown('second_step', '.1f')} s  finite {row['finite']}"
    )


def planned(args: argparse.Namespace) -> list[tuple[int, str]]:
    """(pairs, mode) of all measurements. The naive step has only one pair; eager, a reference, runs with the first count."""
    counts = {"naive": [1], "eager": args.pairs[:1]}
    return [(pairs, mode) for mode in args.modes for pairs in counts.get(mode, args.pairs)]


def main() -> int:
    args = parse_args()
    device = torch_device(args.device)
    use_device(device)
    cuda = device.startswith("cuda")
    fill_in(args, cuda)
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    rates = [peak_rate(device)] if cuda else []
    print(
        f"{name}, torch {torch.__version__}, {args.family}, {args.model} model, {args.precision}, {args.algo} rank {args.rank}, "
        f"{args.optimizer}",
        flush=True,
    )
    results, comparisons = [], []
    for resolution in args.resolutions:
        rows = measure(args, resolution, device)
        comparisons += compare(rows)
        for row in rows:
            row.pop("weights", None)
        results += rows
    if cuda:
        rates.append(peak_rate(device))
        print(f"bfloat16 matrix product: {max(rates) / 1e12:.0f} TFLOP/s")
        for row in results:
            row["share"] = row["flops"] / max(rates) / row["seconds"] if row["flops"] else None
    print(*map(row_text, results), *comparisons, sep="\n")
    if args.json:
        found = {"device": name, "torch": torch.__version__, "rate": max(rates, default=None), "results": results}
        args.json.write_text(json.dumps(found))
    return 0 if all(r["finite"] for r in results) else 1


def measure(args: argparse.Namespace, resolution: int, device: str) -> list[dict]:
    """Measures all modes at one resolution, and prints each result as it comes."""
    rows, naive = [], None
    for pairs, mode in planned(args):
        free_memory(device)
        row = {"resolution": resolution, "pairs": pairs, "mode": mode, "flops": None}
        if mode == "naive":
            row |= measure_naive(args, resolution, device)
            naive = row["seconds"]
        else:
            row |= measure_mode(args, mode, resolution, pairs, device)
            row["times"] = naive * pairs / row["seconds"] if naive else None
            row["flops"] = step_flops(args, resolution, pairs)
        rows.append(row)
        print(f"measured: {row_text(row)}", flush=True)
    return rows


def free_memory(device: str) -> None:
    """Frees the previous mode's memory and compiled code, which would count towards this mode's peak and recompile limit."""
    torch.compiler.reset()
    gc.collect()
    if device.startswith("cuda"):
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def fill_in(args: argparse.Namespace, cuda: bool) -> None:
    """Sets the flags that were not given: the full model on a GPU, the demo's small one without graphs elsewhere."""
    given = {key: value for key, value in vars(args).items() if value is not None}
    full = {"model": "full", "modes": ["naive", "eager", "graph"], "resolutions": [512, 1024], "precision": "bfloat16"}
    demo = {"model": str(DEMO), "modes": ["naive", "eager"], "resolutions": [128], "precision": "float32"}
    vars(args).update({**(full if cuda else demo), **given})


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_step_flags(parser)
    parser.add_argument("--modes", nargs="+", choices=("naive", *MODES), help="naive: always with LoRA")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1], help="pairs of images per step (default: 1)")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="print the N longest kernels of one step")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
