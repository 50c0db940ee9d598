"""The command that checks the report card against the truth: what it reads from pictures beside what a world measures in them."""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from sliders.compute.device import torch_device
from sliders.config.schema import Data
from sliders.data.dataset import ScaleFolders
from sliders.formats.cards import calibrate, keep_card
from sliders.report.card import Card
from sliders.report.grids import to_pictures
from sliders.report.sweeps import rank_correlation
from sliders.report.yardstick import Yardstick, card_multipliers
from sliders.system.errors import InputError
from torch import Tensor

from worlds.base import World
from worlds.models import attached, device_of, family_of, load_model, sampled, world_sampling

MARGIN = 0.25  # of the scale, beyond the folders' own: the ruler is not meant to read farther


@dataclass(frozen=True)
class Agreement:
    """One slider's card beside the truth, in units of the scale."""

    slider: str
    calibration: float  # by the card
    lost: int  # scales at which the card calls it unsure
    true_calibration: float
    correlation: float  # of single pictures that show a scale within MARGIN of the folders'
    error: float  # mean |reading − truth| of the same pictures
    curve_error: float  # the same of the means at each multiplier, over those within MARGIN of the folders'
    pictures: int


class Check:
    """The evaluation captions, their folders, and the yardstick made of them."""

    def __init__(self, world: World, attribute: str, folder: Path, scenes: int, device: str, model: Path | None = None):
        self.world, self.name, self.attribute = world, attribute, world.attributes[attribute]
        self.model = load_model(model or world.model, device)
        world.write_dataset(attribute, folder, scenes)
        data = Data(folder_main=folder, folders=self.attribute.folders, scales=self.attribute.scales)
        self.multipliers = card_multipliers(self.attribute.scales)
        found = ScaleFolders.find(data, self.model.facts.size_multiple)
        size = (world.image_size, world.image_size)
        self.yardstick = Yardstick(self.model, found, size, self.model.encode_prompts([""], device)[""])

    def pictures(self, slider: Path) -> Tensor:
        """[captions, multipliers, 3, H, W] in [0, 1]."""
        network = attached(slider, self.model)
        sampling = world_sampling(self.world.image_size, device_of(self.model))
        found = sampled(self.model, network, self.world.evaluation(self.name), self.multipliers, sampling)
        network.remove()
        return found

    def truth(self, pictures: Tensor) -> Tensor:
        """The scale that each picture shows, [captions, multipliers] on the CPU; nan where that cannot be seen."""
        at = self.attribute.at_scale
        return (self.world.values(self.name, pictures).cpu() - at(0)) / (at(1) - at(0))

    def agreement(self, slider: Path) -> tuple[Agreement, Card]:
        pictures = self.pictures(slider)
        card = self.yardstick.measure(to_pictures(pictures.cpu()), self.multipliers)
        truth, readings = self.truth(pictures).double(), torch.tensor(card.readings, dtype=torch.float64)
        inside = self._inside(truth)
        curve, shown = truth.nanmean(0), readings.mean(0)
        wanted = torch.tensor(self.attribute.scales, dtype=torch.float64)
        at_scales = torch.tensor([curve[self.multipliers.index(s)] for s in self.attribute.scales])
        pairs = torch.stack([truth[inside], readings[inside]])
        found = Agreement(
            slider=slider.stem,
            calibration=card.calibration,
            lost=len(card.lost),
            true_calibration=(at_scales - wanted).abs().mean().item(),
            correlation=torch.corrcoef(pairs)[0, 1].item(),
            error=(pairs[0] - pairs[1]).abs().mean().item(),
            curve_error=(curve - shown)[self._inside(curve)].abs().mean().item(),
            pictures=int(inside.sum()),
        )
        return found, card

    def _inside(self, scales: Tensor) -> Tensor:
        return (scales >= self.attribute.scales[0] - MARGIN) & (scales <= self.attribute.scales[-1] + MARGIN)


def shown(found: list[Agreement]) -> str:
    """Markdown, worst calibration last, and the rank correlation of the card's order with the true one."""
    lines = [
        "| slider | calibration: true | by the card | pictures: correlation | error | curve: error |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    ordered = sorted(found, key=lambda a: a.true_calibration)
    for a in ordered:
        cells = [f"{value:.3f}" for value in (a.true_calibration, a.calibration, a.correlation, a.error, a.curve_error)]
        cells[1] += ", unsure" * (a.lost > 0)
        lines.append(f"| {a.slider} | {' | '.join(cells)} |")
    if len(ordered) > 1:
        places = sorted(range(len(ordered)), key=lambda i: (ordered[i].lost, ordered[i].calibration))
        read = torch.tensor([[places.index(i) for i in range(len(ordered))]], dtype=torch.float64)
        correlation = rank_correlation(range(len(ordered)), read).item()
        lines.append(f"\nrank correlation of the card's order with the true one: {correlation:.3f}")
    return "\n".join(lines)


def main(world: World, description: str) -> int:
    args = parse_arguments(world, description)
    device = torch_device(args.device)
    with tempfile.TemporaryDirectory() as temporary:
        check = Check(world, args.attribute, Path(temporary) / "data", args.scenes, device, args.model)
        results = []
        for slider in args.sliders:
            found, card = check.agreement(slider)
            results.append(found)
            if args.calibrated:
                keep_card(slider, card)
                target = Path(temporary) / f"{slider.stem}, calibrated.safetensors"
                try:
                    calibrate(slider, target, str(args.model), family_of(check.model))
                except InputError as error:
                    print(error)
                    continue
                results.append(check.agreement(target)[0])
    print(shown(results))
    if args.json:
        args.json.write_text(json.dumps([asdict(found) for found in results], indent=1))
    return 0


def parse_arguments(world: World, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sliders", type=Path, nargs="+", metavar="SLIDER")
    add("--attribute", choices=world.attributes, default="size")
    add("--scenes", type=int, default=24, help="in the folders that the card measures by (default: 24)")
    add("--calibrated", action="store_true", help="also after calibration; writes the card into the slider's file")
    add("--model", type=Path, default=world.model, help="the world's model")
    add("--device", default="cpu", help="cpu (default) or a CUDA index")
    add("--json", type=Path, help="also write the results to this file")
    return parser.parse_args()
