"""Compare the GPU memory that `--dry_run` predicts with the measured peak, on a full-size model with random weights.

    uv run trainscripts/benchmarks/bench_memory.py --json memory.json

Trains a few steps in each of 20 configurations, or in those of --configurations, such as `1024/1/96/true/adamw8bit/nf4`:
resolution, pairs, rank, gradient_checkpointing, optimizer, quantize. Prints the predicted and the measured GiB of the steps, how far
apart they are, and what both are before the steps, when images are encoded. `per Mpx` is what remains of the measured peak without
weights, adaptors and optimizer, for each 2^20 px of all rows: with it `ACTIVATIONS` in sliders/train/memory.py can be fitted.
Without a GPU, it prints the predictions only.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from bench_step import MODES, build_in_main_memory, fill_in, free_memory, peak_memory
from bench_world import add_step_flags, make_network, make_settings, synchronize, unchecked_plan, write_noise_images
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.device import torch_device, use_device
from sliders.models import FAMILIES
from sliders.train.memory import GIB, Demand
from sliders.train.plan import Plan, frozen_weights
from sliders.train.trainer import Trainer

CONFIGURATIONS = (
    "512/1/96/false/adamw/none", "768/1/96/false/adamw/none", "1024/1/96/false/adamw/none", "512/4/96/false/adamw/none",
    "1024/2/96/false/adamw/none", "1024/1/4/false/adamw/none", "1024/1/256/false/adamw/none",
    "1024/1/96/false/adamw8bit/none", "1024/1/96/false/adamw/int8", "1024/1/96/false/adamw/nf4",
    "512/1/96/true/adamw/none", "1024/1/96/true/adamw/none", "1024/4/96/true/adamw/none", "1536/1/96/true/adamw/none",
    "512/1/96/true/adamw8bit/int8", "1024/1/96/true/adamw8bit/int8", "1024/1/96/true/adamw8bit/fp8",
    "512/1/96/true/adamw8bit/nf4", "1024/1/96/true/adamw8bit/nf4", "1024/2/16/true/adamw8bit/nf4",
)  # fmt: skip
STEPS = 5  # the graph is captured in the second


def configured(args: argparse.Namespace, words: str) -> argparse.Namespace:
    """The flags of bench_step.py for a configuration."""
    resolution, pairs, rank, checkpointing, optimizer, quantize = words.split("/")
    changed = {
        "resolution": int(resolution), "pairs": int(pairs), "rank": int(rank), "optimizer": optimizer, "quantize": quantize,
        "gradient_checkpointing": checkpointing == "true",
    }  # fmt: skip
    return argparse.Namespace(**{**vars(args), **changed})


def make_plan(args: argparse.Namespace, folder: Path, device: str) -> Plan:
    """The plan of a configuration, with what its prediction needs."""
    data = write_noise_images(folder / "data", args.resolution)
    settings = make_settings(args, folder, args.resolution, args.pairs, MODES["graph" if args.fused else "plain"])
    name, family = args.model, FAMILIES[args.family]
    with torch.device("meta"):
        denoiser = family.weightless_denoiser(family.facts.example if name == "full" else name)
        frozen = frozen_weights(denoiser)
        parameters = AdaptorNetwork(denoiser, make_network(args)).num_parameters()
    settings = settings.model_copy(update={"device": "0"})  # the prediction is for a GPU, even where there is none
    plan = replace(unchecked_plan(settings, device, data), frozen=frozen, parameters=parameters)
    return replace(plan, card=torch.cuda.mem_get_info(device)) if device.startswith("cuda") else plan


def measured(plan: Plan, args: argparse.Namespace) -> tuple[float, float] | None:
    """(peak of the steps, peak before them) in GiB. None without a GPU."""
    if not plan.device.startswith("cuda"):
        return None
    free_memory(plan.device)
    trainer = Trainer(plan, build_in_main_memory(args, plan.device))
    before, _ = peak_memory(plan.device)
    for step in range(STEPS):
        trainer.step(step)
    synchronize(plan.device)
    return peak_memory(plan.device)[0], before


def compare(words: str, demand: Demand, found: tuple[float, float] | None) -> dict:
    row = {
        "configuration": words, "predicted": demand.training / GIB, "predicted_before": demand.encoding / GIB,
        "weights": demand.weights / GIB, "adaptors": demand.adaptors / GIB, "measured": None,
    }  # fmt: skip
    if found:
        row |= {"measured": found[0], "measured_before": found[1], "off": row["predicted"] / found[0] - 1}
        row["per_mpx"] = (found[0] - row["weights"] - row["adaptors"]) / (demand.pixels / 2**20)
    return row


def row_text(row: dict) -> str:
    text = f"{row['configuration']:34s} predicted {row['predicted']:5.1f} GiB (before {row['predicted_before']:4.1f})"
    if row["measured"] is None:
        return text
    return (
        f"{text}  measured {row['measured']:5.1f} (before {row['measured_before']:4.1f})  off by {row['off']:+.1%}  "
        f"{row['per_mpx']:.2f} GiB per Mpx"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_step_flags(parser)
    parser.add_argument("--configurations", nargs="+", default=CONFIGURATIONS, metavar="C")
    parser.add_argument("--plain", dest="fused", action="store_false", help="other.fast_path: off")
    args = parser.parse_args()
    device = torch_device(args.device)
    use_device(device)
    vars(args)["modes"] = None
    fill_in(args, device.startswith("cuda"))
    rows = []
    for words in args.configurations:
        one = configured(args, words)
        with tempfile.TemporaryDirectory() as folder:
            plan = make_plan(one, Path(folder), device)
            rows.append(compare(words, plan.demand, measured(plan, one)))
        print(row_text(rows[-1]), flush=True)
    if far := [abs(row["off"]) for row in rows if row["measured"]]:
        print(f"{sum(o <= 0.1 for o in far)} of {len(far)} within 10 %, the worst off by {max(far):.0%}")
    if args.json:
        args.json.write_text(json.dumps({"results": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
