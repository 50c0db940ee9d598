"""How far bfloat16 steps are from float32: with this project's kernels, and with PyTorch's operations alone.

    uv run trainscripts/benchmarks/bench_precision.py --resolutions 512 --steps 53

The reference computes in float32 without TF32, from the same rounded weights and prompts. Prints for each kind of step:
- the difference of the gradient at random adaptor weights, relative to the gradient's norm;
- the relative difference of the losses of `--steps` steps, mean and largest;
- the difference of the weights at the end, relative to how far they have moved.

On a GPU, a full-size SDXL with random weights, whose float32 steps need a large card; elsewhere the demo's model.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from bench_step import DEMO, free_memory
from bench_world import add_step_flags, build_model, make_settings, publish, unchecked_plan, write_noise_images
from sliders.compute.device import torch_device, use_device
from sliders.models.base import PromptEmbeds
from sliders.models.sdxl.model import SDXL
from sliders.train.trainer import Trainer
from torch import Tensor

REFERENCE = "float32"
KINDS = {  # {kind: what is set in the config's section other}; the reference first
    REFERENCE: {"attention": "math", "fast_path": "off"},
    "plain bfloat16": {"attention": "sdpa", "fast_path": "off"},
    "bfloat16 with kernels": {"attention": "auto"},
}


def load(args: argparse.Namespace, kind: str, device: str) -> SDXL:
    """The model in bfloat16; for the reference, the same values in float32."""
    model = build_model(args.model, "bfloat16", device)
    model.denoiser.to("cpu", torch.bfloat16)
    if kind == REFERENCE:
        model.denoiser.float()
    model.dtype = model.denoiser.dtype
    encode = model.encode_prompts

    def rounded(prompts: list[str], device: str) -> dict[str, PromptEmbeds]:
        found = encode(prompts, device)
        return {p: PromptEmbeds(*(t.bfloat16().to(t.dtype) for t in (e.tokens, e.pooled))) for p, e in found.items()}

    model.encode_prompts = rounded
    return model


def trained(args: argparse.Namespace, kind: str, resolution: int, device: str) -> dict[str, Tensor]:
    """`gradient` at random adaptor weights, then the `losses` of all steps, and by how much the weights `moved`."""
    free_memory(device)
    args.precision = "float32" if kind == REFERENCE else "bfloat16"
    with tempfile.TemporaryDirectory() as name:
        folder, other = Path(name), dict(KINDS[kind])
        args.attention = other.pop("attention")
        data = write_noise_images(folder / "data", resolution)
        settings = make_settings(args, folder, resolution, 1, {**other, "cuda_graph": "off"})
        trainer = Trainer(unchecked_plan(settings, device, data), load(args, kind, device))
        start = trainer.weights.master.detach().clone()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for adaptor in trainer.network.adaptors:
                adaptor.up.copy_(torch.randn(adaptor.up.shape, generator=generator) * 0.02)
        trainer.weights.refresh()
        trainer.step.gradient(trainer.step.make_batch(trainer.step.draw(0)))
        gradient = trainer.weights.master.grad.clone().cpu()
        with torch.no_grad():
            trainer.weights.master.copy_(start)
        trainer.weights.refresh()
        losses = torch.stack([trainer.step(step).values[0] for step in range(args.steps)]).cpu()
    return {"gradient": gradient, "losses": losses, "moved": (trainer.weights.master.detach() - start).cpu()}


def difference(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).double().norm() / wanted.double().norm()).item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_step_flags(parser)
    args = parser.parse_args()
    device = torch_device(args.device)
    use_device(device)
    cuda = device.startswith("cuda")
    args.model = args.model or ("full" if cuda else str(DEMO))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    found = {"device": torch.cuda.get_device_name() if cuda else "CPU", "model": args.model, "steps": args.steps}
    for resolution in args.resolutions or [512 if cuda else 128]:
        wanted, *results = (trained(args, kind, resolution, device) for kind in KINDS)
        for kind, result in zip(list(KINDS)[1:], results, strict=True):
            off = (result["losses"] / wanted["losses"] - 1).abs()
            found[f"{resolution} px, {kind}"] = {
                "gradient": round(difference(result["gradient"], wanted["gradient"]), 4),
                "losses_mean": round(off.mean().item(), 6),
                "losses_largest": round(off.max().item(), 6),
                "weights": round(difference(result["moved"], wanted["moved"]), 4),
            }
    publish(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
