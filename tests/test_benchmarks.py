"""The benchmarks' default paths, on the tiny model and the CPU."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, load_script
from sliders.models.objective import EPSILON, Objective
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.model import SDXL
from sliders.models.sdxl.narrow import build_narrow_sdxl

TINY = ("--model", "tiny", "--rank", "4", "--device", "cpu")


@pytest.fixture
def results(monkeypatch, tmp_path):
    """`results(benchmark, words)` runs a benchmark with these flags and returns what it writes to --json."""

    def run(benchmark: str, words: str) -> dict:
        out = tmp_path / "bench.json"
        monkeypatch.setattr("sys.argv", [f"{benchmark}.py", *TINY, *words.split(), "--json", str(out)])
        assert load_script(benchmark).main() == 0
        return json.loads(out.read_text())

    return run


def test_bench_step_measures_naive_steps_and_compares_each_mode_with_eager(results, capsys):
    """Graphs need a GPU, so here `graph` is a second eager run and ends with the same weights."""
    flags = "--resolutions 64 --modes naive eager graph --pairs 1 --steps 1"
    naive, eager, graph = results("bench_step", flags)["results"]
    assert (naive["mode"], eager["mode"]) == ("naive", "eager")
    assert naive["finite"] and eager["finite"]
    assert eager["times"] == pytest.approx(naive["seconds"] / eager["seconds"])
    assert eager["flops"] > 1e6
    assert len(eager["losses"]) == 3 + 5 * 1  # warm-up, then five blocks of --steps
    assert eager["moved"] > 0
    assert graph["apart"] < 1e-2
    shown = capsys.readouterr().out
    assert "× naive" in shown and "graph against eager at 64 px" in shown


def test_bench_step_measures_other_algorithms(results):
    (found,) = results("bench_step", "--algo lokr --factor 4 --resolutions 64 --modes eager --steps 1")["results"]
    assert found["finite"] and found["moved"] > 0


def test_bench_step_measures_flow_models(results):
    (found,) = results("bench_step", "--family zimage --resolutions 64 --modes eager --steps 1")["results"]
    assert found["finite"] and found["moved"] > 0 and found["flops"] > 1e6


def test_bench_precision_compares_bfloat16_with_float32(results):
    """Without a GPU there are no kernels, so both kinds of bfloat16 steps are the same but for their attention."""
    found = results("bench_precision", "--resolutions 64 --steps 3")
    plain, kernels = found["64 px, plain bfloat16"], found["64 px, bfloat16 with kernels"]
    for kind in (plain, kernels):
        assert 1e-3 < kind["gradient"] < 0.1
        assert 0 < kind["losses_mean"] <= kind["losses_largest"] < 0.01
    assert plain["gradient"] == pytest.approx(kernels["gradient"], rel=0.3)
    shorter = results("bench_precision", "--resolutions 64 --steps 1")["64 px, plain bfloat16"]
    assert shorter["gradient"] == plain["gradient"], "the gradient is taken before the steps"


def test_bench_memory_predicts_without_a_gpu(results, capsys):
    (row,) = results("bench_memory", "--configurations 64/2/8/true/adamw8bit/int8")["results"]
    assert row["measured"] is None and row["predicted"] > row["weights"] + row["adaptors"]
    bench = load_script("bench_memory")
    demand = bench.Demand("sdxl", bench.frozen_weights(SDXL_FAMILY.weightless_denoiser("tiny")), 1000, 2 * 64**2, 64**2)
    found = bench.compare("…", demand, (2 * demand.training / bench.GIB, 1.0))
    assert found["off"] == pytest.approx(-0.5)
    assert "64/2/8/true/adamw8bit/int8" in capsys.readouterr().out and len(bench.CONFIGURATIONS) == 20


def test_bench_sampling_makes_the_same_pictures_together_and_one_by_one(results):
    found = results("bench_sampling", "--resolution 64 --steps 2 --repeats 1")
    assert found["largest_difference"] < 1e-4
    assert found["pictures"] == 6
    for way in ("together", "one_by_one"):
        ratio = found[f"diffusers_{way}_s"] / found[f"{way}_s"]
        assert found[f"times_diffusers_{way}"] == pytest.approx(ratio, rel=0.05)


def test_bench_card_measures_all_pictures_by_all_images(monkeypatch, tmp_path):
    out = tmp_path / "bench.json"
    flags = "--model tiny --device cpu --resolution 64 --prompts 1"
    monkeypatch.setattr("sys.argv", ["bench_card.py", *flags.split(), "--json", str(out)])
    assert load_script("bench_card").main() == 0
    found = json.loads(out.read_text())
    assert (found["pictures"], found["folder_images"]) == (9, 96)


def test_bench_processes_counts_the_pairs_of_all_processes(tmp_path):
    """In processes of their own, started by torchrun."""
    out = tmp_path / "bench.json"
    script = str(ROOT / "trainscripts" / "benchmarks" / "bench_processes.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [*TINY, "--resolutions", "64", "--steps", "1", "--json", str(out)]
    found = subprocess.run([*launcher, script, *words], check=True, capture_output=True, text=True)
    (row,) = json.loads(out.read_text())["results"]
    assert row["processes"] == 2
    assert f"{row['all'] / row['one']:.2f} times" in found.stdout
    assert found.stdout.count("pairs/s with 1 process") == 1


def test_bench_start_times_every_phase_up_to_the_first_step(monkeypatch, tmp_path):
    out = tmp_path / "bench.json"
    flags = f"--model tiny --resolution 64 --device cpu --repeats 1 --folder {tmp_path} --json {out}"
    monkeypatch.setattr("sys.argv", ["bench_start.py", *flags.split(), "--until", "first step"])
    bench = load_script("bench_start")
    assert bench.main() == 0
    (start,) = json.loads(out.read_text())["starts"]
    assert tuple(start["seconds"]) == bench.PHASES
    assert start["total_s"] == pytest.approx(sum(start["seconds"].values()), abs=0.1)
    assert (tmp_path / "tiny" / "model.safetensors").exists()


def test_an_sdxl_without_text_encoders_has_a_fingerprint():
    """Like the random SDXL of the benchmarks; its fingerprint depends on the weights it has."""

    def fingerprint(encoders: bool, seed: int) -> str:
        pipe = build_narrow_sdxl(seed=seed)
        if not encoders:
            pipe.text_encoder = pipe.text_encoder_2 = None
        objective = Objective.from_scheduler_config(dict(pipe.scheduler.config), EPSILON, False)
        return SDXL(SDXL_FAMILY.facts, pipe, objective, "random").fingerprint()

    without = fingerprint(encoders=False, seed=0)
    assert without == fingerprint(encoders=False, seed=0)
    assert without != fingerprint(encoders=False, seed=1)
    assert without != fingerprint(encoders=True, seed=0)
