"""Train a concept slider for Z-Image from folders of images, one folder per multiplier. `--help` lists the flags."""

import sys

from sliders.commands import train_on_images

if __name__ == "__main__":
    sys.exit(train_on_images(sys.argv[1:], family="zimage"))
