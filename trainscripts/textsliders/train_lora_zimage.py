"""Train a concept slider for Z-Image from prompts alone, without images. `--help` lists the flags."""

import sys

from sliders.commands import train_on_prompts

if __name__ == "__main__":
    sys.exit(train_on_prompts(sys.argv[1:], family="zimage"))
