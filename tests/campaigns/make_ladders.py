"""From an idea to a measured slider in the shapes world: a ladder, two of its rows left out, a training, a card, the truth.

    python tests/campaigns/make_ladders.py

First from a prompt with three levels, blue, purple and red. Then from a slider for size: trained on few images, it is measured,
makes the pictures of a ladder where its card says that it shows the folders' scales, and a second slider is trained on those.
Everything but the ticking of rows is done by the commands that users type; the rows with the most foreign pixels are left out.
"""

import argparse
import contextlib
import io
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import yaml
from conftest import ROOT, SCRIPTS, script_main
from PIL import Image
from shapesworld.attributes import ATTRIBUTES
from shapesworld.evaluate import SHAPES
from shapesworld.world import BACKGROUNDS, COLOURS, IMAGE_SIZE, Scenes, measure
from shapesworld.world import SHAPES as SHAPE_NAMES
from sliders.formats.cards import read_card
from sliders.report.card import Card
from sliders.report.verdict import verdict
from sliders.system.weight_files import open_weights
from worlds.check_card import Agreement, Check

DEMO = SCRIPTS / "data" / "config-xl-demo.yaml"
SAMPLING = (
    "--model", str(SHAPES.model), "--device", "cpu", "--steps", "15", "--guidance", "3", "--width", str(IMAGE_SIZE),
    "--height", str(IMAGE_SIZE),
)  # fmt: skip
SIZES = ATTRIBUTES["size"].scales
LEFT_OUT = 2  # rows
SCENES = {
    "warmth": SHAPES.fewest_scenes,
    "size": 24,
}  # in the folders by which all sliders of an attribute are measured
SCENES_OF_LEVELS = ("circle on a white", "square on a grey", "triangle on a beige", "circle on a black")
SCENES_OF_SLIDER = (
    "red square on a white", "green circle on a grey", "blue circle on a beige", "purple square on a black",
    "cyan circle on a white", "yellow triangle on a black", "red triangle on a grey", "green triangle on a beige",
)  # fmt: skip
UNSEEN = ("cyan square on a beige", "blue triangle on a white", "purple circle on a beige", "yellow circle on a grey")


@dataclass(frozen=True)
class Outcome:
    """A slider as its own card sees it, and as the world does beside a card by the world's folders."""

    name: str
    own: Card
    found: Agreement
    by_folders: Card

    def __str__(self) -> str:
        own = f"by its own card off by {self.own.calibration:.2f} ± {self.own.doubt:.2f} ({verdict(self.own)})"
        other = f"by the world's folders by {self.found.calibration:.2f} ({verdict(self.by_folders)})"
        return f"{self.name}: {own}, {other}, truly by {self.found.true_calibration:.2f} of a scale"


@dataclass(frozen=True)
class Lengths:
    """Of a run of this campaign."""

    steps: int = 300  # of the sliders that are trained on ladders
    few: int = 120  # of the slider that makes the second ladder
    seeds: int = 3  # of each prompt


def said(script: str, *argv: str) -> str:
    """What a command prints on its standard output. Raises RuntimeError if it fails."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        status = script_main(script)(list(argv))
    if status:
        raise RuntimeError(f"{script} {shlex.join(argv)} ended with status {status}")
    return output.getvalue()


def prompt_of(scene: str) -> str:
    return f"a {scene} background"


def write_config(path: Path, method: str, steps: int, dropout: float) -> Path:
    """The demo's config, for ladders: with their captions, of `steps` steps, without pictures."""
    config = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    config["pretrained_model"]["name_or_path"] = str(SHAPES.model)
    config["network"] |= {"training_method": method, "rank": 16, "alpha": 16}
    config["train"] |= {"iterations": steps, "caption_dropout": dropout}
    config["save"] |= {"path": str(path.parent / "models"), "per_steps": steps}
    del config["preview"], config["prompts_file"]
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def ladder(folder: Path, *flags: str) -> list[str]:
    """Makes one. Returns the trainer's flags, as the command prints them."""
    closing = said("sample_slider-xl", "--ladder", str(folder), *SAMPLING, *flags)
    line = next(line for line in closing.splitlines() if line.startswith("train "))
    return shlex.split(line)[4:]


def tick_the_worst(folder: Path, rows: int = LEFT_OUT) -> list[str]:
    """Names of the rows with the most foreign pixels in any of their pictures, and a file of them in the folder."""
    mess = {}
    for caption in sorted((folder / "captions").iterdir()):
        pictures = [
            torch.from_numpy(np.asarray(Image.open(path)) / 255).permute(2, 0, 1)
            for path in sorted(folder.glob(f"*/{caption.stem}.png"))
        ]
        _, colour, shape, _, _, background, _ = caption.read_text(encoding="utf-8").split()
        scene = (SHAPE_NAMES.index(shape), list(COLOURS).index(colour), list(BACKGROUNDS).index(background))
        indices = [torch.full((len(pictures),), index) for index in scene]
        middle = torch.full((len(pictures),), IMAGE_SIZE / 2)
        between = tuple(COLOURS[name] for name in ("blue", "purple", "red")) if colour == "purple" else None
        found = measure(torch.stack(pictures), Scenes(*indices, middle, middle, middle / 2), between)
        mess[caption.stem] = found.mess.max().item()
    worst = sorted(mess, key=mess.get, reverse=True)[:rows]
    (folder / "leave_out.txt").write_text("\n".join(worst), encoding="utf-8")
    return worst


def train(config: Path, flags: list[str], *more: str) -> tuple[Path, str]:
    """The last slider of a run, and what it printed."""
    words = [*flags]
    words[words.index("--config_file") + 1] = str(config)
    output = said("train_lora-scale-xl", *words, "--device", "cpu", "--batch_size", "2", *more)
    saved = next(line for line in output.splitlines() if line.startswith("saved "))
    return Path(saved.removeprefix("saved").strip()), output


def outcome(name: str, slider: Path, folder: Path, attribute: str, *flags: str) -> Outcome:
    """Its card, of unseen captions, and what the world measures."""
    prompts = [prompt_of(scene) for scene in UNSEEN]
    if attribute == "warmth":
        prompts = [prompt_of(f"purple {scene.partition(' ')[2]}") for scene in UNSEEN]
    out = slider.parent / "card"
    argv = ["--slider", str(slider), "--card", str(folder), "--out", str(out), "--prompt", *prompts]
    print(said("sample_slider-xl", *argv, "--seeds", "11, 12", *SAMPLING, *flags), end="")
    card = read_card(open_weights(slider, "").metadata)
    with tempfile.TemporaryDirectory() as temporary:
        check = Check(SHAPES, attribute, Path(temporary) / "data", SCENES[attribute], "cpu")
        return Outcome(name, card, *check.agreement(slider))


def from_a_prompt(root: Path, lengths: Lengths) -> Outcome:
    folder = root / "warmth"
    prompts = [prompt_of(f"{{blue|purple|red}} {scene}") for scene in SCENES_OF_LEVELS]
    flags = ladder(folder, "--prompt", *prompts, "--neutral", "purple", "--from_step", "4", "--seeds", seeds(lengths))
    print(f"left out: {', '.join(tick_the_worst(folder))}")
    config = write_config(root / "warmth.yaml", "full", lengths.steps, dropout=0.05)
    leave_out = ("--leave_out", str(folder / "leave_out.txt"))
    slider, output = train(config, flags, *leave_out)
    print(next(line for line in output.splitlines() if line.startswith("images ")))
    return outcome("warmth, from a prompt's levels", slider, folder, "warmth", *leave_out)


def from_a_slider(root: Path, lengths: Lengths) -> Iterator[Outcome]:
    data, folder = ROOT / "datasets" / "shapes_size", root / "size"
    first_flags = [
        "--config_file", "", "--name", "first", "--folder_main", str(data), "--resolution", str(IMAGE_SIZE),
        "--folders", ", ".join(ATTRIBUTES["size"].folders), "--scales", ", ".join(map(str, SIZES)),
    ]  # fmt: skip
    few = root / "few.txt"
    few.write_text("\n".join(sorted(p.stem for p in (data / "base").glob("*.png"))[3:]), encoding="utf-8")
    config = write_config(root / "first.yaml", "noxattn", lengths.few, dropout=0.0)
    slider, _ = train(config, first_flags, "--leave_out", str(few))
    yield outcome("first size slider, of three names", slider, data, "size")
    flags = ladder(
        folder, "--slider", str(slider), "--shows", ", ".join(map(str, SIZES)), "--seeds", seeds(lengths),
        "--prompt", *map(prompt_of, SCENES_OF_SLIDER),
    )  # fmt: skip
    print(f"left out: {', '.join(tick_the_worst(folder))}")
    config = write_config(root / "second.yaml", "noxattn", lengths.steps, dropout=0.0)
    slider, output = train(config, flags, "--leave_out", str(folder / "leave_out.txt"))
    print(next(line for line in output.splitlines() if line.startswith("images ")))
    yield outcome(
        "second, of the first's pictures", slider, folder, "size", "--leave_out", str(folder / "leave_out.txt")
    )


def seeds(lengths: Lengths) -> str:
    return ", ".join(str(seed) for seed in range(1, lengths.seeds + 1))


def main(root: Path, lengths: Lengths) -> Iterator[Outcome]:
    yield from_a_prompt(root, lengths)
    yield from from_a_slider(root, lengths)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Lengths.steps, help="of the sliders that are trained on ladders")
    parser.add_argument("--few", type=int, default=Lengths.few, help="of the slider that makes the second ladder")
    parser.add_argument("--seeds", type=int, default=Lengths.seeds, help="of each prompt")
    parser.add_argument("--keep", type=Path, help="a new folder for the ladders and sliders (default: a temporary one)")
    arguments = parser.parse_args()
    place, began = arguments.keep or Path(tempfile.mkdtemp()), time.monotonic()
    place.mkdir(parents=True, exist_ok=True)
    for found in main(place, Lengths(arguments.steps, arguments.few, arguments.seeds)):
        print(found, flush=True)
    print(f"{time.monotonic() - began:.0f} s in all")
    if arguments.keep is None:
        shutil.rmtree(place)
