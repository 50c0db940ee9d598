"""Checks the report card against the truth: what it reads from pictures beside what `world.measure` finds in them.

    uv run trainscripts/shapesworld/check_card.py --attribute size A.safetensors B.safetensors …

Prints for each slider its calibration error by the card and by measurement, and how well the readings of single pictures and
of the curve agree with the truth, all in units of the scale; then whether the card ranks the sliders as the truth does.
`--calibrated` does the same for each slider after convert_slider.py --calibrate has folded its factor in.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.device import torch_device
from sliders.config.schema import Data
from sliders.data.dataset import ScaleFolders
from sliders.formats.cards import calibrate, keep_card
from sliders.formats.slider_file import open_slider
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.report.card import Card
from sliders.report.grids import to_pictures
from sliders.report.sweeps import rank_correlation
from sliders.report.yardstick import Yardstick, card_multipliers
from sliders.sample.preview import sample_grid
from sliders.system.errors import InputError
from torch import Tensor

from shapesworld.attributes import ATTRIBUTES, EVALUATION_SEEDS, evaluation_scenes, measured
from shapesworld.evaluate import GPU_ROWS, MODEL, SAMPLING, load_model
from shapesworld.make_dataset import write_dataset
from shapesworld.world import IMAGE_SIZE, captions

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

    def __init__(self, attribute: str, folder: Path, scenes: int, device: str):
        self.name, self.attribute, self.scenes = attribute, ATTRIBUTES[attribute], evaluation_scenes(attribute)
        self.device, self.model = device, load_model()
        self.model.pipe.to(device)
        write_dataset(attribute, folder, scenes)
        data = Data(folder_main=folder, folders=self.attribute.folders, scales=self.attribute.scales)
        texts = captions(self.scenes)
        self.embeds = self.model.encode_prompts([*texts, ""], device)
        self.jobs = [(self.embeds[text], seed) for text, seed in zip(texts, EVALUATION_SEEDS, strict=True)]
        self.multipliers = card_multipliers(self.attribute.scales)
        found = ScaleFolders.find(data, SDXL_FAMILY.facts.size_multiple)
        self.yardstick = Yardstick(self.model, found, (IMAGE_SIZE, IMAGE_SIZE), self.embeds[""])

    def pictures(self, slider: Path) -> Tensor:
        """[captions, multipliers, 3, H, W] in [0, 1]."""
        network: AdaptorNetwork = open_slider(slider, self.model.denoiser, SDXL_FAMILY)
        sampling = replace(SAMPLING, batch_size=SAMPLING.batch_size if self.device == "cpu" else GPU_ROWS)
        found = sample_grid(self.model, network, self.jobs, self.embeds[""], self.multipliers, sampling)
        network.remove()
        return found

    def truth(self, pictures: Tensor) -> Tensor:
        """The scale that each picture shows, [captions, multipliers]; nan where no shape is seen."""
        at, field = self.attribute.at_scale, self.attribute.measure
        columns = [getattr(measured(self.name, pictures[:, i], self.scenes), field) for i in range(pictures.shape[1])]
        return (torch.stack(columns, 1) - at(0)) / (at(1) - at(0))

    def agreement(self, slider: Path) -> tuple[Agreement, Card]:
        pictures = self.pictures(slider)
        card = self.yardstick.measure(to_pictures(pictures), self.multipliers)
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


def main() -> int:
    args = parse_arguments()
    device = torch_device(args.device)
    with tempfile.TemporaryDirectory() as temporary:
        check = Check(args.attribute, Path(temporary) / "data", args.scenes, device)
        results = []
        for slider in args.sliders:
            found, card = check.agreement(slider)
            results.append(found)
            if args.calibrated:
                keep_card(slider, card)
                target = Path(temporary) / f"{slider.stem}, calibrated.safetensors"
                try:
                    calibrate(slider, target, str(MODEL), SDXL_FAMILY)
                except InputError as error:
                    print(error)
                    continue
                results.append(check.agreement(target)[0])
    print(shown(results))
    if args.json:
        args.json.write_text(json.dumps([asdict(found) for found in results], indent=1))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sliders", type=Path, nargs="+", metavar="SLIDER")
    add("--attribute", choices=ATTRIBUTES, default="size")
    add("--scenes", type=int, default=24, help="in the folders that the card measures by (default: 24)")
    add("--calibrated", action="store_true", help="also after calibration; writes the card into the slider's file")
    add("--device", default="cpu", help="cpu (default) or a CUDA index")
    add("--json", type=Path, help="also write the results to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
