"""Time a cold start: from the training command to its first step, with a full-size SDXL in one .safetensors file.

    uv run trainscripts/benchmarks/bench_start.py --folder bench_start

Writes the model (6.9 GB, random weights, fp16, original layout), its config, images and settings into the folder, which later
calls use again. Then it runs the training command, and prints the seconds of each phase, the peak of its main memory (VmHWM,
which includes pages of the mapped file) and that of the memory that is not a file's (RssAnon, every 20 ms), both on Linux.
Without a GPU it stops before the first step, which would take minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice, product
from pathlib import Path

import torch
import yaml
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from single_file import save_single_file
from sliders.compute.device import place
from sliders.models.diffusers_unet.narrow import build_scheduler
from sliders.models.diffusers_unet.tokenizer import END, END_OF_WORD, START, build_tokenizer, byte_symbols
from sliders.models.sdxl.narrow import NarrowSDXL, build_sdxl_vae, build_text_encoders, build_unet
from start_probe import PHASES

SIZES = {
    "full": NarrowSDXL(
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        unet_norm_groups=32,
        addition_time_embed_dim=256,
        sample_size=128,
        vae_block_out_channels=(128, 256, 512, 512),
        vae_norm_groups=32,
        text_hidden_sizes=(768, 1280),
        text_layers=(12, 32),
        text_heads=(12, 20),
        text_projection_dim=1280,
    ),
    "tiny": NarrowSDXL(),
}
TOKENS = 49408  # in CLIP's vocabulary
FOLDERS = {"low": 0.67, "high": 1.5}
IMAGES = 2  # in each folder


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """One of CLIP's size, and its merges, which are pairs of bytes."""
    symbols = list(byte_symbols().values())
    ends = [symbol + END_OF_WORD for symbol in symbols]
    merges = list(islice(product(symbols, symbols), TOKENS - 2 * len(symbols) - 2))
    tokens = [*symbols, *ends, *("".join(pair) for pair in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def write_model(folder: Path, widths: NarrowSDXL) -> None:
    """`folder/config`, a diffusers folder without weights, and `folder/model.safetensors`, complete or absent."""
    vocab, merges = vocabulary()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # random numbers take minutes on the CPU
        first, second = build_text_encoders(widths, vocab)
        vae, unet = build_sdxl_vae(widths), build_unet(widths)
    pipe = StableDiffusionXLPipeline(
        vae=vae, unet=unet, text_encoder=first, text_encoder_2=second,
        tokenizer=build_tokenizer(vocab, merges, pad_token=END), tokenizer_2=build_tokenizer(vocab, merges, pad_token="!"),
        scheduler=build_scheduler(), add_watermarker=False,
    )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    for part in (unet, vae, first, second):
        place(part, "cpu", torch.float16)
    config = folder / "config"
    pipe.save_config(config)
    for name in ("vae", "unet", "scheduler"):
        getattr(pipe, name).save_config(config / name)
    for name in ("text_encoder", "text_encoder_2"):
        getattr(pipe, name).config.save_pretrained(config / name)
    for name in ("tokenizer", "tokenizer_2"):
        getattr(pipe, name).save_pretrained(config / name)
    save_single_file(pipe, folder / "part.safetensors").replace(folder / "model.safetensors")


def write_experiment(folder: Path, args: argparse.Namespace) -> list[str]:
    """Images, config and prompts. Returns the flags of the training command."""
    generator = torch.Generator().manual_seed(0)
    size, data = args.resolution, folder / "data" / str(args.resolution)
    for name, number in product(FOLDERS, range(IMAGES)):
        pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator)
        (data / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(data / name / f"{number}.png", compress_level=0)
    config = {
        "prompts_file": str(folder / "prompts.yaml"),
        "pretrained_model": {
            "name_or_path": str(folder / "model.safetensors"),
            "config": str(folder / "config"),
            "quantize": args.quantize,
        },
        "network": {"type": "c3lier", "rank": 16, "alpha": 8, "training_method": "noxattn"},
        "train": {"precision": "bfloat16", "iterations": 10},
        "save": {"name": "start", "path": str(folder / "models")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    prompts = [{"target": "ab cd", "resolution": size}]
    (folder / "prompts.yaml").write_text(yaml.safe_dump(prompts), encoding="utf-8")
    scales = ", ".join(map(str, FOLDERS.values()))
    return [
        "--config_file", str(folder / "config.yaml"), "--folder_main", str(data), "--folders", ", ".join(FOLDERS),
        "--scales", scales, "--device", args.device, "--overwrite",
    ]  # fmt: skip


def status(process: int, key: str) -> int | None:
    """A line of Linux' /proc/PID/status in bytes, or None if it does not say."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def measure(folder: Path, flags: list[str], until: str) -> dict:
    """One start, in a process of its own."""
    report, peaks = folder / "report.json", {"VmHWM": 0, "RssAnon": 0}
    report.unlink(missing_ok=True)
    probe = [sys.executable, str(Path(__file__).parent / "start_probe.py"), str(report), until, *flags]
    began = time.time()
    process = subprocess.Popen(probe)
    while process.poll() is None:
        peaks = {key: max(peak, status(process.pid, key) or 0) for key, peak in peaks.items()}
        time.sleep(0.02)
    if process.returncode or not report.exists():
        sys.exit(f"the training command failed with exit status {process.returncode}")
    found = json.loads(report.read_text(encoding="utf-8"))
    seconds, before = {}, began
    for phase, end in found.pop("ends").items():
        seconds[phase], before = round(end - before, 2), end
    return {
        **found,
        "seconds": seconds,
        "total_s": round(before - began, 2),
        "peak_gib": {key: round(peak / 2**30, 2) for key, peak in peaks.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="where to keep the model for later calls (default: a temporary folder)"
    )
    parser.add_argument("--model", choices=SIZES, default="full")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--quantize", default="none", help="as in the config")
    parser.add_argument("--device", default="0")
    parser.add_argument(
        "--repeats", type=int, default=2, help="starts; the first may find a cold disk cache (default: 2)"
    )
    parser.add_argument("--until", choices=PHASES, help="default: first step with a GPU, placing without")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    until = args.until or ("first step" if args.device.isdigit() and torch.cuda.is_available() else "placing")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)) / args.model
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "model.safetensors"
        if not model.exists():
            write_model(folder, SIZES[args.model])
        flags = write_experiment(folder, args)
        file_gib = round(model.stat().st_size / 2**30, 2)
        starts = [measure(folder, flags, until) for _ in range(args.repeats)]
    for start in starts:
        phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in start["seconds"].items())
        print(f"{start['device']}: {phases}; total {start['total_s']:.2f} s")
        print(
            f"  file {file_gib} GiB, peak main memory {start['peak_gib']} GiB, peak GPU memory {start['gpu_peak_gib']} GiB"
        )
    if args.json:
        args.json.write_text(json.dumps({"file_gib": file_gib, "starts": starts}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
