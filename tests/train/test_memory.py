"""The memory that a run needs, as arithmetic, against peaks measured on an NVIDIA H200."""

from dataclasses import replace

import pytest
from conftest import write_experiment
from sliders.config.settings import load_settings
from sliders.models import find_family
from sliders.models.layers import architecture_of
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.train import resources
from sliders.train import trainer as training
from sliders.train.memory import EIGHT_BIT, GIB, SDXL, SDXL_PARAMETERS, Demand, Frozen, advise, describe_need
from sliders.train.plan import describe, frozen_weights, make_plan
from torch import nn

SDXL_HUB = "stabilityai/stable-diffusion-xl-base-1.0"
SMALL = {"checkpointing": True, "optimizer": "adamw8bit"}
Z_IMAGE = {"family": "zimage", "frozen": Frozen(728_528_000, 5_426_380_800, 1_651_200), "parameters": 70_041_600}
MEASURED = [  # GiB, one pair: the guide's table of cards, and what it says of kernels, algorithms and Z-Image
    (512, {}, 9.1),
    (1024, {}, 15.3),
    (1024, {"quantize": "int8"}, 13.2),
    (1024, {"checkpointing": True}, 8.1),
    (512, {**SMALL, "quantize": "int8"}, 4.5),
    (1024, {**SMALL, "quantize": "int8"}, 5.2),
    (1024, {**SMALL, "quantize": "fp8"}, 5.2),
    (512, {**SMALL, "quantize": "nf4"}, 3.5),
    (1024, {**SMALL, "quantize": "nf4"}, 4.3),
    (512, {"fused": False}, 9.8),
    (1024, {"fused": False}, 17.8),
    (512, {"parameters": 760_400_000}, 20),  # network.algo: full
    (1024, {"parameters": 760_400_000}, 26),
    (512, Z_IMAGE, 23.0),
    (1024, Z_IMAGE, 51.2),
]


def demand(resolution=1024, **changes) -> Demand:
    usual = Demand("sdxl", SDXL, SDXL_PARAMETERS, pixels=2 * resolution**2, picture=resolution**2)
    return replace(usual, **changes)


@pytest.mark.parametrize(("resolution", "changes", "measured"), MEASURED)
def test_the_prediction_is_within_ten_percent_of_the_measured_peak(resolution, changes, measured):
    assert demand(resolution, **changes).training / GIB == pytest.approx(measured, rel=0.1)


@pytest.fixture(scope="module")
def unet():
    return SDXL_FAMILY.weightless_denoiser(SDXL_HUB)


def test_the_counted_weights_are_those_of_sdxl(unet):
    """Counted here parameter by parameter."""
    assert frozen_weights(unet) == SDXL
    part = architecture_of(unet).quantized
    linear = {f"{n}.weight" for n, m in unet.named_modules() if isinstance(m, nn.Linear) and part in f".{n}"}
    assert SDXL.quantizable == sum(p.numel() for n, p in unet.named_parameters() if n in linear)
    assert SDXL.plain == sum(p.numel() for n, p in unet.named_parameters() if n not in linear)


@pytest.mark.parametrize(
    ("free", "changes"),
    [
        (15.5, {"train.optimizer": "adamw8bit"}),
        (8.5, {"other.gradient_checkpointing": "true"}),
        (8.0, {"other.gradient_checkpointing": "true", "train.optimizer": "adamw8bit"}),
        (5.6, {"other.gradient_checkpointing": "true", "train.optimizer": "adamw8bit", "pretrained_model.quantize": "int8"}),
        (4.6, {"other.gradient_checkpointing": "true", "train.optimizer": "adamw8bit", "pretrained_model.quantize": "nf4"}),
    ],
)  # fmt: skip
def test_the_advice_is_what_costs_least_and_fits(free, changes):
    wanted, room = demand(), int(free * GIB)
    found = wanted.fitting(room)
    assert found.changes(wanted) == changes
    assert found.fits(room) and not wanted.fits(room)
    sentence = advise(wanted, (room, 24 * GIB))
    assert all(f"{key}: {value}" in sentence for key, value in changes.items())


def test_there_is_no_advice_where_the_run_fits_or_no_card_is_known():
    assert advise(demand(), (16 * GIB, 16 * GIB)) is None
    assert advise(demand(), None) is None


def test_where_nothing_fits_the_smallest_need_is_stated_with_what_else_helps():
    sentence = advise(
        demand(), (3 * GIB, 4 * GIB), ["resolution: 768 in the prompts", "resolution: 512 in the prompts"]
    )
    assert "pretrained_model.quantize: nf4 4.2: close" in sentence
    assert "set resolution: 768 in the prompts, or use a larger card." in sentence and "512" not in sentence


def test_every_lighter_run_needs_less_and_keeps_the_kind_of_optimizer():
    for optimizer in ("adamw", "lion", "prodigy"):
        wanted = demand(optimizer=optimizer)
        lighter = list(wanted.lighter())
        assert lighter
        for found in lighter:
            assert found.peak < wanted.peak
            assert found.optimizer in (optimizer, EIGHT_BIT.get(optimizer))


def settings_for(tmp_path, *flags):
    train = {"precision": "bfloat16"}
    (settings,), _ = load_settings(write_experiment(tmp_path, ["--device", "0", *flags], train=train))
    return settings


def test_the_plan_states_the_memory_of_a_full_size_model_only(tmp_path, unet):
    plan = make_plan(settings_for(tmp_path))
    assert plan.demand is None and "\nmemory" not in describe(plan)
    full = replace(plan, frozen=frozen_weights(unet), parameters=SDXL_PARAMETERS)
    assert (full.demand.pixels, full.demand.picture) == (2 * 64**2, 64**2)
    line = next(line for line in describe(full).splitlines() if line.startswith("memory"))
    assert line.startswith(
        "memory  about 7.1 GiB on the GPU: 4.8 for the model, 1.7 for adaptors and adamw, 0.5 for a step"
    )
    on_cpu = full.settings.model_copy(update={"device": "cpu"})
    assert replace(full, settings=on_cpu).demand is None
    small = replace(full, card=(6 * GIB, 8 * GIB), device="cpu")
    assert "; 6.0 of 8.0 are free" in describe(small)
    assert (
        "GiB of GPU memory are needed, and 6.0 are free: pretrained_model.quantize: int8 brings it to 5.1."
        in describe(small)
    )


@pytest.mark.parametrize("name", ["sd", "flux2"])
def test_a_family_without_measurements_says_so(name, tmp_path):
    settings = settings_for(tmp_path)
    family = find_family(name, settings.pretrained_model)
    frozen = frozen_weights(family.weightless_denoiser(family.facts.example))
    line = describe_need(demand(family=name, frozen=frozen), (2 * GIB, 4 * GIB))
    assert line.startswith("more than ") and "which was not measured" in line and "2.0 of 4.0 are free" in line


def test_a_gpu_that_is_nearly_full_is_reported_once(tmp_path, monkeypatch, train_main, capsys):
    monkeypatch.setattr(training, "gpu_memory", lambda device: (GIB, 24 * GIB))
    assert train_main(write_experiment(tmp_path, logging={"log_every": 1}, train={"iterations": 2})) == 0
    out = capsys.readouterr().out
    assert out.count("96% of the GPU's memory is used") == 1 and "step 1:" in out
    assert resources.nearly_full(settings_for(tmp_path), SDXL_FAMILY, (2 * GIB, 24 * GIB)) is None
