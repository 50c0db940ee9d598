"""Writes the scale folders of an attribute: the same scenes in each, under the same file names, as PNG.

uv run trainscripts/emojiworld/make_dataset.py --attribute skin --scenes 24 --out /tmp/skin

The captions of the scenes are written beside the images of the first folder. Names that are held out are in no folder.
"""

import argparse
import sys
from pathlib import Path

from sliders.report.grids import to_picture
from sliders.system.errors import InputError

from emojiworld.attributes import ATTRIBUTES, TRAINING_COUNT, at_scale, training_scenes
from emojiworld.pictures import PICTURES, Pictures, load_pictures
from emojiworld.world import captions, render


def write_dataset(pictures: Pictures, name: str, out: Path, count: int = TRAINING_COUNT) -> None:
    """count: number of scenes. Raises ValueError if there are fewer names."""
    attribute, scenes = ATTRIBUTES[name], training_scenes(pictures, name, count)
    texts = captions(scenes, pictures)
    for folder, scale in zip(attribute.folders, attribute.scales, strict=True):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for text, image in zip(texts, render(at_scale(scenes, name, scale), pictures), strict=True):
            path = out / folder / f"{_file_name(text)}.png"
            to_picture(image).save(path)
            if folder == attribute.folders[0]:
                path.with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")


def _file_name(caption: str) -> str:
    """ "a waving hand on a blue background" -> "waving_hand_on_blue"."""
    return "_".join(caption.removesuffix(" background").replace(" on a ", " on ").split()[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--attribute", choices=ATTRIBUTES, default="skin")
    add("--out", type=Path, required=True)
    add("--scenes", type=int, default=TRAINING_COUNT)
    add("--pictures", type=Path, default=PICTURES, help="the archive that get_pictures.py wrote")
    arguments = parser.parse_args()
    try:
        write_dataset(load_pictures(arguments.pictures), arguments.attribute, arguments.out, arguments.scenes)
    except (InputError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    attribute = ATTRIBUTES[arguments.attribute]
    scales = ", ".join(map(str, attribute.scales))
    print(f"wrote {arguments.out}: --folders '{', '.join(attribute.folders)}' --scales '{scales}'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
