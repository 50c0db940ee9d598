"""Throw wrong and odd input at the command line and the image reader, and see that each ends with an answer.

    python tests/campaigns/fuzz.py --count 20000

An answer is status 0, or 2 with sentences on stderr. Anything that is raised, a case of more than a minute, or a file that
was not there before, is a failure; hypothesis then prints the smallest case that it found.
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

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import yaml
from conftest import EXPERIMENT, load_script, make_scale_folders, write_experiment
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from sliders.errors import InputError
from sliders.flags import build_parser, parse_scales
from sliders.images import read_image

HANG = 60  # seconds
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO")
# Hub ids would make the layers of the full-size model be counted, seconds each; one name is remembered.
MODELS = st.sampled_from(["tiny", "nobody", "", "../x", "a b", "\0", "~", "https://x/y"])

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["1e-4", "..", "a:b", "{x}"])
)  # fmt: skip
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4), max_leaves=8
)
KEYS = {
    "network": ["type", "algo", "rank", "alpha", "training_method"],
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
    """`text` with a few pieces cut out, doubled or replaced."""
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
    with contextlib.suppress(OSError, ValueError):  # not every format holds every kind of pixel
        picture.save(stream, draw(st.sampled_from(FORMATS)))
    return draw(damaged(stream.getvalue())) if draw(st.integers(0, 9)) else draw(st.binary(max_size=300))


class Fuzz:
    def __init__(self, folder: Path):
        importlib.import_module("sliders.runs")  # seconds, which are no case's
        self.folder = folder
        self.main = load_script("train_lora-scale-xl").main
        make_scale_folders(folder / "data", folders=("low", "high"), names=("one",))
        self.argv = [*write_experiment(folder, data=folder / "data"), "--folders", "low, high", "--scales", "-1, 1"]
        self.config, self.prompts = (folder / "config.yaml").read_bytes(), (folder / "prompts.yaml").read_bytes()
        self.image = (folder / "data" / "low" / "one.png").read_bytes()
        self.answers = {0: 0, 2: 0}
        self.files = self.listing()

    def listing(self) -> list[Path]:
        return sorted([*self.folder.rglob("*"), *Path.cwd().iterdir()])

    def run(
        self, words=(), config: bytes | None = None, prompts: bytes | None = None, image: bytes | None = None
    ) -> None:
        for name, new, usual in (
            ("config.yaml", config, self.config),
            ("prompts.yaml", prompts, self.prompts),
            ("data/low/one.png", image, self.image),
        ):
            (self.folder / name).write_bytes(usual if new is None else new)
        out, error = io.StringIO(), io.StringIO()
        faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            status = self.main([*self.argv, *words, "--dry_run"])
        faulthandler.cancel_dump_traceback_later()
        lines = error.getvalue().splitlines()
        assert status in self.answers, status
        if status:
            assert lines and all(line.startswith("error: ") for line in lines), lines
        assert self.listing() == self.files
        self.answers[status] += 1

    def parse(self, text: str) -> None:
        try:
            parse_scales(text)
            self.answers[0] += 1
        except InputError:
            self.answers[2] += 1

    def read(self, picture: bytes) -> None:
        path = self.folder / "data" / "high" / "one.png"
        usual = path.read_bytes()
        path.write_bytes(picture)
        faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
        try:
            assert read_image(path).mode == "RGB"
            self.answers[0] += 1
        except InputError:
            self.answers[2] += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
            path.write_bytes(usual)


def main(count: int, number: int, folder: Path) -> dict[str, dict[int, int]]:
    """`count` cases, a fifth of them of each kind. Returns {kind: {status: cases}}. Raises what a case raised."""
    fuzz = Fuzz(folder)
    kinds = {
        "config": (configs(str(folder / "prompts.yaml")), lambda c: fuzz.run(config=c)),
        "prompts": (prompts, lambda p: fuzz.run(prompts=p)),
        "flags": (flags, fuzz.run),
        "scales": (scales, fuzz.parse),
        "images": (pictures(), fuzz.read),
    }
    found = {}
    for kind, (strategy, check) in kinds.items():
        fuzz.answers = {0: 0, 2: 0}
        run_cases(strategy, check, max(1, count // len(kinds)), number)
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
    print(table, f"{total} cases in {time.monotonic() - began:.0f} s; each was answered")
    os.chdir("/")
    shutil.rmtree(place)
