"""Writes the scale folders of an attribute: the same six scenes in each, under the same file names, as PNG.

uv run trainscripts/shapesworld/make_dataset.py --attribute size --out datasets/shapes_size
"""

import argparse
from pathlib import Path

from sliders.sample.grids import to_picture

from shapesworld.attributes import ATTRIBUTES, training_scenes
from shapesworld.world import captions, render


def write_dataset(name: str, out: Path) -> None:
    attribute = ATTRIBUTES[name]
    for folder, scale in zip(attribute.folders, attribute.scales, strict=True):
        (out / folder).mkdir(parents=True, exist_ok=True)
        scenes = training_scenes(name, scale)
        for text, image in zip(captions(scenes), render(scenes), strict=True):
            name_words = text.replace(" a ", " ").removeprefix("a ").removesuffix(" background").split()
            to_picture(image).save(out / folder / f"{'_'.join(name_words)}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attribute", choices=ATTRIBUTES, default="size")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_dataset(arguments.attribute, arguments.out)
    attribute = ATTRIBUTES[arguments.attribute]
    scales = ", ".join(map(str, attribute.scales))
    print(f"wrote {arguments.out}: --folders '{', '.join(attribute.folders)}' --scales {scales}")


if __name__ == "__main__":
    main()
