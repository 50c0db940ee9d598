"""What the benchmarks share: models, and for those of training steps flags, data, plans and operation counts."""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from random_flow import RandomKlein, RandomZImage
from random_sdxl import RandomSDXL
from sliders.adaptors import ALGORITHMS
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.device import DTYPES
from sliders.config.prompts import PromptSet
from sliders.config.schema import Data, Logging, Network, Other, PretrainedModel, Preview, Save, Settings, Train
from sliders.data.dataset import ScaleFolders
from sliders.data.timesteps import allowed_timesteps
from sliders.models import FAMILIES, find_family
from sliders.models.base import Geometry, Model
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.train.plan import Plan
from torch.utils.flop_counter import FlopCounterMode

SCALES = {"low": 0.67, "middle": 1.0, "high": 2.0}
RANDOM = {
    "sdxl": RandomSDXL,
    "flux2": RandomKlein,
    "zimage": RandomZImage,
}  # {family: its usual model with random weights}
METHODS = {"sdxl": "noxattn", "flux2": "full", "zimage": "full"}  # training methods


def add_step_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that decide what a training step computes."""
    add = parser.add_argument
    add("--family", choices=RANDOM, default="sdxl", help="sdxl (default), flux2 or zimage")
    add(
        "--model",
        help="full (random weights), tiny, or any of the family (default: full on a GPU, elsewhere the demo's SDXL)",
    )
    add("--resolutions", type=int, nargs="+")
    add("--algo", choices=ALGORITHMS, default="lora")
    add("--factor", type=int, help="of --algo lokr")
    add("--rank", type=int, default=96)
    add("--steps", type=int, default=10, help="steps in each of the five timed blocks (default: 10)")
    add("--precision", choices=("bfloat16", "float32"))
    add("--optimizer", default="adamw")
    add("--attention", default="auto")
    add("--quantize", default="none")
    add("--gradient_checkpointing", action="store_true")
    add("--device", default="0")
    add("--json", type=Path, help="also write the results to this file")


def unchecked_plan(settings: Settings, device: str, data: ScaleFolders) -> Plan:
    """A plan without the checks that `make_plan` makes of the model's source."""
    family = find_family(settings.family, settings.pretrained_model)
    return Plan(settings, family, device, data, (), 0, None, (), allowed_timesteps(settings.train))


def build_model(name: str, precision: str, device: str, family: str = "sdxl") -> Model:
    """name: full (random weights, created on the device), tiny, or any model of the family (loaded on the CPU)."""
    if name == "full":
        return RANDOM[family](device, DTYPES[precision])
    return FAMILIES[family].load(PretrainedModel(name_or_path=name), DTYPES[precision])


def publish(found: dict, path: Path | None) -> None:
    """Prints results, and writes them to a JSON file if there is to be one."""
    width = max(map(len, found))
    print("\n".join(f"{key:{width}s} {value}" for key, value in found.items()))
    if path:
        path.write_text(json.dumps(found, indent=1))


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def write_noise_images(root: Path, size: int) -> ScaleFolders:
    """A data set in `root`: three folders of two noise images each, `size` × `size` px."""
    generator = torch.Generator().manual_seed(0)
    for folder in SCALES:
        (root / folder).mkdir(parents=True)
        for name in ("a", "b"):
            pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(root / folder / f"{name}.png", compress_level=0)
    data = Data(folder_main=root, folders=tuple(SCALES), scales=tuple(SCALES.values()))
    return ScaleFolders.find(data, SDXL_FAMILY.facts.size_multiple)


def make_settings(args: argparse.Namespace, root: Path, resolution: int, pairs: int, other: dict[str, str]) -> Settings:
    """other: settings of that section besides those of the flags."""
    return Settings(
        config_file=root,
        pretrained_model=PretrainedModel(name_or_path=args.model, quantize=args.quantize),
        network=make_network(args),
        train=Train(precision=args.precision, optimizer=args.optimizer, max_denoising_steps=850),
        save=Save(name="bench", path=root),
        preview=Preview(),
        logging=Logging(),
        other=Other(attention=args.attention, gradient_checkpointing=args.gradient_checkpointing, **other),
        prompts=(PromptSet(target="", resolution=resolution, batch_size=pairs),),
        data=Data(folder_main=root, folders=tuple(SCALES), scales=tuple(SCALES.values())),
        device=args.device,
        family=args.family,
    )


def make_network(args: argparse.Namespace) -> Network:
    return Network(
        type="c3lier",
        algo=args.algo,
        factor=args.factor,
        rank=args.rank,
        alpha=args.rank / 2,
        training_method=METHODS[args.family],
    )


def step_flops(args: argparse.Namespace, resolution: int, pairs: int) -> int:
    """Floating-point operations of one step's forward and backward pass, with adaptors, without gradients of frozen weights."""
    model = build_model(args.model, "float32", "meta", args.family)
    rows = 2 * pairs
    (prompt,) = model.encode_prompts([""], "cpu").values()
    size = (resolution, resolution)
    conditioning = model.conditioning([prompt] * rows, [Geometry(size, (0, 0), size)] * rows)
    model.objective, denoiser = model.objective.to("meta"), model.denoiser.to("meta")
    network = AdaptorNetwork(denoiser, make_network(args))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network.set_multipliers(torch.ones(rows))
        noisy, timesteps = torch.empty(rows, *model.facts.latent_shape(*size)), torch.empty(rows, dtype=torch.int64)
        output = model.denoise(noisy, timesteps, {key: value.to("meta") for key, value in conditioning.items()})
        output.sum().backward()
    return counter.get_total_flops()
