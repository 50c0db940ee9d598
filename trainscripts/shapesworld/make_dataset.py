"""Writes the scale folders of an attribute: the same scenes in each, under the same file names, as PNG.

uv run trainscripts/shapesworld/make_dataset.py --attribute size --scenes 24 --out datasets/shapes_size

The captions of the scenes are written beside the images of the first folder.
"""

import argparse
from pathlib import Path

from sliders.report.grids import to_picture

from shapesworld.attributes import ATTRIBUTES, TRAINING_SCENES, training_scenes
from shapesworld.world import captions, render


def write_dataset(name: str, out: Path, count: int = len(TRAINING_SCENES)) -> None:
    """count: number of scenes."""
    attribute = ATTRIBUTES[name]
    for folder, scale in zip(attribute.folders, attribute.scales, strict=True):
        (out / folder).mkdir(parents=True, exist_ok=True)
        scenes = training_scenes(name, scale, count)
        for text, image in zip(captions(scenes), render(scenes), strict=True):
            path = out / folder / f"{_file_name(text)}.png"
            to_picture(image).save(path)
            if folder == attribute.folders[0]:
                path.with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")


def _file_name(caption: str) -> str:
    """ "a red circle on a white background" -> "red_circle_on_white"."""
    return "_".join(caption.replace(" a ", " ").removeprefix("a ").removesuffix(" background").split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attribute", choices=ATTRIBUTES, default="size")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=len(TRAINING_SCENES))
    arguments = parser.parse_args()
    write_dataset(arguments.attribute, arguments.out, arguments.scenes)
    attribute = ATTRIBUTES[arguments.attribute]
    scales = ", ".join(map(str, attribute.scales))
    print(f"wrote {arguments.out}: --folders '{', '.join(attribute.folders)}' --scales {scales}")


if __name__ == "__main__":
    main()
