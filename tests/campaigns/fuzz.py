"""Feeds invalid and unusual input to the command line and the image reader, and checks that each case ends cleanly.

    python tests/campaigns/fuzz.py --count 20000

A case ends cleanly with status 0, or with status 2 and messages on stderr. An exception, a case that takes more than a
minute, or a new file outside the run's folder is a failure, for which hypothesis prints the smallest case that it finds. One
case in 200 trains for a step. In all cases, every path that Python opens for writing is checked.
"""

import argparse
import contextlib
import faulthandler
import importlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import yaml
from conftest import EXPERIMENT, make_scale_folders, script_main, write_experiment
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from sliders.config.flags import build_parser, parse_scales
from sliders.config.settings import load_settings
from sliders.data.images import read_image
from sliders.system.errors import InputError

HANG = 60  # seconds
CACHES = {"__pycache__", ".hypothesis"}  # written by Python and hypothesis
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO")
# No hub ids: for each new one, seconds go into building the full-size model without weights.
MODELS = st.sampled_from(["tiny", "nobody", "", "../x", "a b", "\0", "~", "https://x/y"])

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["1e-4", "..", "a:b", "{x}"])
)  # fmt: skip
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4), max_leaves=8
)
KEYS = {
    "network": ["type", "algo", "factor", "rank", "alpha", "training_method", "include", "exclude"],
    "train": ["precision", "iterations", "lr", "optimizer", "optimizer_args", "lr_scheduler", "max_denoising_steps", "loss",
              "max_grad_norm", "skip_nonfinite", "seed"],
    "save": ["name", "path", "per_steps", "precision", "keep"],
    "preview": ["prompts", "multipliers", "seed", "steps"],
    "logging": ["log_every", "use_wandb", "verbose"],
    "other": ["attention", "cuda_graph", "torch_compile", "lycorisize", "gradient_checkpointing", "torch_amp"],
}  # fmt: skip
PROMPT_KEYS = ["target", "positive", "unconditional", "neutral", "action", "guidance_scale", "resolution",
               "dynamic_resolution", "batch_size", "dynamic_crops", "extra"]  # fmt: skip


@st.composite
def damaged(draw, text: bytes) -> bytes:
    """`text` with a few pieces removed, doubled or replaced."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        text = text[:start] + draw(st.one_of(st.binary(max_size=8), st.just(text[start:end] * 2))) + text[end:]
    return text


@st.composite
def configs(draw, prompts_file: str) -> bytes:
    config = {"prompts_file": prompts_file, **{k: dict(v) for k, v in EXPERIMENT.items()}}
    for _ in range(draw(st.integers(1, 3))):
        section = draw(st.sampled_from([*KEYS, "trian"]))
        key = draw(st.sampled_from(KEYS.get(section, ["lr"])))
        if isinstance(config.setdefault(section, {}), dict) and draw(st.booleans()):
            config[section][key] = draw(values)
        else:
            config[section] = draw(values)
    text = yaml.safe_dump(config, allow_unicode=draw(st.booleans())).encode("utf-8", "replace")
    return draw(damaged(text)) if draw(st.booleans()) else text


prompt_sets = st.lists(st.dictionaries(st.sampled_from(PROMPT_KEYS), values, max_size=6), max_size=3).map(
    lambda sets: yaml.safe_dump(sets).encode()
)
prompts = st.one_of(prompt_sets, prompt_sets.flatmap(damaged), st.binary(max_size=200))
FLAGS = sorted(
    option
    for action in build_parser()._actions
    for option in action.option_strings
    if option not in ("-h", "--help", "--model", "--overwrite", "--config_file")
)
words = st.one_of(
    st.text(max_size=12), st.integers().map(str), st.sampled_from(["low, high", "-1, 1", "0-3", "cpu", "..", "/"])
)
flags = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(FLAGS), words).map(list),
        st.sampled_from(FLAGS).map(lambda f: [f]),
        MODELS.map(lambda m: ["--model", m]),
        words.map(lambda w: [w]),
    ),
    max_size=4,
).map(lambda parts: [word for part in parts for word in part])
scales = st.one_of(st.text(alphabet="0123456789.,-+eE_ \t\n−infax\0٣", max_size=24), st.text(max_size=12))


@st.composite
def pictures(draw) -> bytes:
    stream = io.BytesIO()
    picture = Image.new(draw(st.sampled_from(["RGB", "L", "RGBA", "P", "1"])), (16, 12), draw(st.integers(0, 255)) or 0)
    with contextlib.suppress(OSError, ValueError):  # not every format supports every mode
        picture.save(stream, draw(st.sampled_from(FORMATS)))
    return draw(damaged(stream.getvalue())) if draw(st.integers(0, 9)) else draw(st.binary(max_size=300))


names = (
    st.text("abc ._-é", min_size=1, max_size=12)
    | st.text(max_size=16)
    | st.sampled_from(["../../x", "a/b", "..", "~", "CON", "a.", " b", "x" * 120, "🧥", "a:1>", "{b}"])
)
saves = st.fixed_dictionaries(
    {"name": names, "path": st.sampled_from(["models", "a/../b", "b/./c", ".", "~", "x y", "[z]*"])},
    optional={
        "per_steps": st.integers(0, 4), "keep": st.integers(0, 4), "sidecars": st.booleans(),
        "precision": st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    },
)  # fmt: skip
again = st.lists(st.sampled_from(["--resume", "--overwrite"]), max_size=2, unique=True)
training_runs = st.lists(st.tuples(saves, again), min_size=1, max_size=2)


class Writes:
    """Records the paths that Python opens for writing, creates, or renames to, from its audit events."""

    def __init__(self):
        self.paths: set[str] = set()
        sys.addaudithook(self._on_event)  # Python has no way to remove it

    def _on_event(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes) and isinstance(arguments[2], int):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not Path(os.fsdecode(arguments[0])).is_dir():  # not the folder of an unnamed temporary file
                self._note(arguments[0])
        elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink"):
            self._note(arguments[0 if event == "os.mkdir" else 1])

    def _note(self, path: str | bytes | os.PathLike) -> None:
        self.paths.add(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100 - Path.resolve would follow links

    def outside(self, folder: Path) -> list[str]:
        """Returns the recorded paths that still exist, except in `folder`, /dev and caches. Clears the record."""
        paths, self.paths = self.paths, set()
        allowed = (f"{folder}{os.sep}", "/dev/")
        return [
            path for path in paths
            if os.path.lexists(path) and not f"{path}{os.sep}".startswith(allowed) and not CACHES & set(Path(path).parts)
        ]  # fmt: skip


class Fuzz:
    def __init__(self, folder: Path):
        importlib.import_module("sliders.train.runs")  # takes seconds, which must not count against the first case
        self.folder = folder
        self.writes = Writes()
        self.main = script_main("train_lora-scale-xl")
        make_scale_folders(folder / "data", folders=("low", "high"), names=("one",))
        self.argv = [*write_experiment(folder, data=folder / "data"), "--folders", "low, high", "--scales", "-1, 1"]
        self.config, self.prompts = (folder / "config.yaml").read_bytes(), (folder / "prompts.yaml").read_bytes()
        self.image = (folder / "data" / "low" / "one.png").read_bytes()
        self.answers = {0: 0, 2: 0}
        self.files = self.listing()

    def listing(self) -> list[Path]:
        return sorted([*self.folder.rglob("*"), *Path.cwd().iterdir()])

    def train(self, attempts: list[tuple[dict, list[str]]]) -> None:
        """Trains one run after the other in the same folder, with what the earlier ones left there."""
        experiment = {**EXPERIMENT, "train": {**EXPERIMENT["train"], "iterations": 1}, "prompts_file": "prompts.yaml"}
        (self.folder / "prompts.yaml").write_bytes(b"- {target: '', resolution: 64}\n")
        own: set[Path] = set()
        try:
            for save, words in attempts:
                (self.folder / "config.yaml").write_text(yaml.safe_dump({**experiment, "save": save}), encoding="utf-8")
                argv = [*self.argv, *words]
                status, errors = self.answer(argv)
                assert status in self.answers, status
                assert status == 0 or (errors and all(line.startswith("error: ") for line in errors)), errors
                own |= {load_settings(argv)[0][0].run_dir.resolve()} if status == 0 else set()
                foreign = [p for p in self.made() if not p.is_dir() and not own & set(p.resolve().parents)]
                assert not foreign, foreign
                assert (outside := self.writes.outside(self.folder)) == [], outside
                self.answers[status] += 1
        finally:
            for path in self.made():
                path.rmdir() if path.is_dir() else path.unlink()

    def made(self) -> list[Path]:
        """Paths that did not exist at first, the contents of a folder before the folder itself."""
        return sorted(set(self.listing()) - set(self.files), reverse=True)

    def answer(self, argv: list[str]) -> tuple[int, list[str]]:
        """Runs the command. Returns its status and the error lines on stderr."""
        out, error = io.StringIO(), io.StringIO()
        faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            status = self.main(argv)
        faulthandler.cancel_dump_traceback_later()
        return status, [line for line in error.getvalue().splitlines() if line.startswith("error") or status]

    def run(
        self, words=(), config: bytes | None = None, prompts: bytes | None = None, image: bytes | None = None
    ) -> None:
        for name, new, original in (
            ("config.yaml", config, self.config),
            ("prompts.yaml", prompts, self.prompts),
            ("data/low/one.png", image, self.image),
        ):
            (self.folder / name).write_bytes(original if new is None else new)
        status, lines = self.answer([*self.argv, *words, "--dry_run"])
        assert status in self.answers, status
        if status:
            assert lines and all(line.startswith("error: ") for line in lines), lines
        assert self.listing() == self.files
        assert (outside := self.writes.outside(self.folder)) == [], outside
        self.answers[status] += 1

    def parse(self, text: str) -> None:
        try:
            parse_scales(text)
            self.answers[0] += 1
        except InputError:
            self.answers[2] += 1

    def read(self, picture: bytes) -> None:
        path = self.folder / "data" / "high" / "one.png"
        original = path.read_bytes()
        path.write_bytes(picture)
        faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
        try:
            assert read_image(path).mode == "RGB"
            self.answers[0] += 1
        except InputError:
            self.answers[2] += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
            path.write_bytes(original)


def main(count: int, number: int, folder: Path) -> dict[str, dict[int, int]]:
    """Runs `count` cases: a few that train, and equally many of each of the other five kinds.

    Returns {kind: {status: number of cases}}. Raises what a failing case raises.
    """
    fuzz = Fuzz(folder)
    trained = max(2, count // 200)
    kinds = {
        "config": (configs(str(folder / "prompts.yaml")), lambda c: fuzz.run(config=c)),
        "prompts": (prompts, lambda p: fuzz.run(prompts=p)),
        "flags": (flags, fuzz.run),
        "scales": (scales, fuzz.parse),
        "images": (pictures(), fuzz.read),
        "runs": (training_runs, fuzz.train),
    }
    found = {}
    for kind, (strategy, check) in kinds.items():
        fuzz.answers = {0: 0, 2: 0}
        with patch.dict(os.environ, HOME=str(folder), USERPROFILE=str(folder)):  # `~` is a path, too
            run_cases(strategy, check, trained if kind == "runs" else -(-(count - trained) // (len(kinds) - 1)), number)
        found[kind] = fuzz.answers
        print(kind, fuzz.answers, file=sys.stderr, flush=True)
    return found


def run_cases(strategy: st.SearchStrategy, check: Callable, count: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(strategy)
    def cases(case):
        check(case)

    cases()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    place, began = Path(tempfile.mkdtemp()), time.monotonic()
    os.chdir(place)
    table = main(arguments.count, arguments.seed, place)
    total = sum(sum(answers.values()) for answers in table.values())
    print(table, f"{total} cases in {time.monotonic() - began:.0f} s; all ended cleanly")
    os.chdir("/")
    shutil.rmtree(place)
