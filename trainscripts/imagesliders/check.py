"""Say what this machine can do, which lines of a config fit its GPU, and what to do about each problem. `--help` lists the flags."""

import sys

from sliders.commands import check

if __name__ == "__main__":
    sys.exit(check(sys.argv[1:]))
