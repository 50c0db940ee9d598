"""Train a concept slider for FLUX.2 [klein] 4B from prompts alone, without images. `--help` lists the flags."""

import sys

from sliders.commands import train_on_prompts

if __name__ == "__main__":
    sys.exit(train_on_prompts(sys.argv[1:], family="flux2"))
