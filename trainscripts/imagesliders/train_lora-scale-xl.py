"""Train a concept slider for SDXL from folders of images, one folder per multiplier. `--help` lists the flags."""

import shlex
import sys

from sliders.errors import InputError
from sliders.interrupts import Stopped
from sliders.settings import load_settings


def main(argv: list[str]) -> int:
    try:
        runs, flags = load_settings(argv)
        # torch comes in only now: --help and a mistyped key answer at once
        from sliders.runs import run_all

        run_all(runs, dry_run=flags.dry_run)
    except InputError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{str(error.filename)[:80]}: " if error.filename else ""
        print(
            f"error: {place}{error.strerror or error}: check the path, its permissions and the space left.",
            file=sys.stderr,
        )
        return 2
    except Stopped as stopped:
        print(f"stopped by {stopped.name}; go on with\n  {resume_command(argv)}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("stopped; sliders that were saved are whole", file=sys.stderr)
        return 130
    return 0


def resume_command(argv: list[str]) -> str:
    words = [w for w in argv if w not in ("--overwrite", "--resume")]
    return shlex.join(["uv", "run", sys.argv[0] if __name__ == "__main__" else __file__, *words, "--resume"])


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # Windows' code pages lack some of the signs in the plan
    sys.exit(main(sys.argv[1:]))
