"""Other ways to train FLUX.2 [klein]: from prompts, with quantised weights, checkpointing, and captured calls."""

import itertools

import pytest
import torch
from conftest import script_main
from cpu_graph import Stream, replace_cuda
from experiments import TEXT_SETS, make_trainer, write_text_experiment
from networks import gathered_gradients, randomize
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.quantization import ByteLinear
from sliders.config.families import KLEIN
from sliders.config.schema import Network
from sliders.config.settings import load_text_settings
from sliders.fast.graphs import CapturedCalls
from sliders.fast.path import FastPath
from sliders.models.flux2.model import Klein
from sliders.models.flux2.narrow import build_narrow_klein
from sliders.sample import captured, sampling
from sliders.sample.sampling import Row, Sampling, sample
from sliders.system.errors import InputError
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer
from test_flux2 import FULL, NaiveKlein
from torch.utils._python_dispatch import TorchDispatchMode

PROMPTS = [{"target": "a disc", "resolution": 64, "batch_size": pairs} for pairs in (1, 2)]


# --- prompts alone


@pytest.mark.parametrize("distilled", [False, True])
def test_a_text_step_equals_a_naive_one_in_float64(tmp_path, distilled):
    """Its latents are made by Euler's method with guidance 3, or without guidance by a distilled model."""
    (settings,), _ = load_text_settings(write_text_experiment(tmp_path, network=FULL), "flux2")
    trainer = Trainer(make_plan(settings), Klein(KLEIN, build_narrow_klein(distilled=distilled), "tiny"))
    network = trainer.network
    randomize(network)
    naive = NaiveKlein(network.module_paths, [a.down for a in network.adaptors], [a.up for a in network.adaptors])
    draw = next(draw for draw in map(trainer.step.draw, itertools.count()) if len(draw.rows) == 4)
    chosen, losses = TEXT_SETS[draw.prompt], []

    def velocity(noisy, s, prompt, multiplier):
        naive.multiplier = multiplier
        return naive.velocity(noisy, s, naive.tokens(prompt))

    for row in draw.rows:
        noisy = torch.randn(
            KLEIN.latent_shape(64, 64), generator=torch.Generator().manual_seed(row.noise_seed)
        ).double()
        s, last = 1.0, (row.timestep + 1) / 1000
        with torch.no_grad():
            for step in range(1, 6):
                if s > last:
                    after = (1000 - 1000 * step // 6) / 1000
                    prediction = velocity(noisy, s, chosen["target"], row.scale)
                    if not distilled:
                        without = velocity(noisy, s, "", row.scale)
                        prediction = without + 3 * (prediction - without)
                    noisy, s = noisy + (after - s) * prediction, after
            assert s == pytest.approx(last)
            parts = (velocity(noisy, s, chosen[key], 0.0) for key in ("neutral", "positive", "unconditional"))
            neutral, positive, unconditional = parts
            target = neutral + row.scale * chosen["guidance_scale"] * (positive - unconditional)
        losses.append((velocity(noisy, s, chosen["target"], row.scale) - target).square().mean())
    wanted = 2 * torch.stack(losses).mean()
    wanted.backward()
    loss = trainer.step.loss_of(trainer.step.make_batch(draw))
    loss.backward()
    print("relative error", abs(loss.item() / wanted.item() - 1))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    found = gathered_gradients(trainer)
    for i, path in enumerate(network.module_paths):
        exact = naive.ups[path].grad
        assert (found[f"adaptors.{i}.up"].double() - exact).norm() < 1e-3 * exact.norm(), path


@pytest.mark.parametrize(("distilled", "parts"), [(False, 2), (True, 1)])
def test_the_negative_prompt_is_asked_about_only_where_it_counts(tmp_path, distilled, parts):
    (settings,), _ = load_text_settings(write_text_experiment(tmp_path, network=FULL), "flux2")
    model = Klein(KLEIN, build_narrow_klein(distilled=distilled), "tiny")
    trainer, asked = Trainer(make_plan(settings), model), []
    denoise = model.denoise
    model.denoise = lambda noisy, *others: asked.append(len(noisy)) or denoise(noisy, *others)
    draw = next(draw for draw in map(trainer.step.draw, itertools.count()) if draw.rows[0].timestep < 500)
    trainer.step.make_batch(draw)
    assert asked[0] == parts * len(draw.rows)


def test_the_script_trains_a_slider_from_prompts(tmp_path):
    argv = write_text_experiment(tmp_path, network=FULL)
    assert script_main("train_lora_flux2")(argv) == 0
    assert list((tmp_path / "models").glob("probe_klein_*/probe_klein_*_last.safetensors"))


# --- less memory


def gradients(trainer):
    randomize(trainer.network)
    trainer.step.backward(trainer.step.make_batch(trainer.step.draw(0)))
    return trainer.weights.master.grad


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    plain, checkpointed = (
        gradients(make_trainer(tmp_path / str(on), family="flux2", network=FULL, other={"gradient_checkpointing": on}))
        for on in (made(tmp_path, "False"), made(tmp_path, "True"))
    )
    assert plain.any()
    assert torch.equal(plain, checkpointed)


def made(root, name):
    (root / name).mkdir()
    return name == "True"


def test_int8_stores_the_layers_of_the_blocks_and_trains_nearly_alike(tmp_path):
    found = {}
    for kind in ("none", "int8"):
        made(tmp_path, kind)
        other = {"gradient_checkpointing": kind == "int8"}
        trainer = make_trainer(
            tmp_path / kind, family="flux2", network=FULL, other=other, pretrained_model={"quantize": kind}
        )
        small = {name for name, m in trainer.model.denoiser.named_modules() if isinstance(m, ByteLinear)}
        assert small == (set(trainer.network.module_paths) if kind == "int8" else set())
        found[kind] = gradients(trainer)
    difference = (found["int8"] - found["none"]).norm() / found["none"].norm()
    print("gradient with int8 differs by", difference.item())
    assert 0 < difference < 0.05
    result = trainer.step(1)
    assert result.loss > 0


def test_plain_operations_and_the_fast_path_train_alike(tmp_path):
    found = {}
    for way in ("auto", "off"):
        made(tmp_path, way)
        found[way] = gradients(make_trainer(tmp_path / way, family="flux2", network=FULL, other={"fast_path": way}))
    assert (found["auto"] - found["off"]).norm() < 1e-5 * found["off"].norm()


@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_attention_is_computed_with_the_kernels_asked_for(tmp_path, fast_path):
    """Also where checkpointing computes it again."""
    seen = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "attention" in str(func):
                seen.append(str(func))
            return func(*args, **(kwargs or {}))

    found = {}
    for name in ("auto", "math"):
        made(tmp_path, name)
        other = {"attention": name, "fast_path": fast_path, "gradient_checkpointing": True}
        trainer = make_trainer(tmp_path / name, family="flux2", network=FULL, other=other)
        with Seen():
            found[name] = gradients(trainer)
        if name == "auto":
            assert sum("backward" not in call for call in seen) == 2 * 3
            seen.clear()
    assert not seen
    assert (found["auto"] - found["math"]).norm() < 1e-5 * found["auto"].norm()


def test_kernels_of_other_packages_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"other\.attention: xformers is not used by FLUX\.2"):
        make_trainer(tmp_path, family="flux2", other={"attention": "xformers"})


# --- captured calls


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_captured_step_equals_an_uncaptured_one(tmp_path, monkeypatch, checkpointed):
    replace_cuda(monkeypatch)
    other = {"gradient_checkpointing": checkpointed}
    trainer = make_trainer(tmp_path, family="flux2", prompts=PROMPTS, network=FULL, other=other)
    graphs = CapturedCalls(trainer.step.backward, torch.device("cpu"), "training", trainer.weights.drop_gradients)
    randomize(trainer.network)
    for number in range(8):
        batch = trainer.step.make_batch(trainer.step.draw(number))
        loss, gradient = graphs(batch), trainer.weights.master.grad.clone()
        assert torch.equal(loss, trainer.step.backward(batch))
        assert torch.equal(gradient, trainer.weights.master.grad)
    assert graphs.captured == 2


def test_pictures_with_graphs_equal_those_without(monkeypatch):
    model = Klein(KLEIN, build_narrow_klein(), "tiny")
    embeds = model.encode_prompts(["a disc", ""], "cpu")
    network = AdaptorNetwork(model.denoiser, Network(type="c3lier", rank=4, alpha=2.0))
    randomize(network)
    rows = [Row(embeds["a disc"], seed, (multiplier,)) for seed, multiplier in enumerate((-1.0, 0.0, 0.5, 2.0))]

    def pictures():
        return torch.stack(list(sample(model, [network], rows, embeds[""], Sampling(64, 48, 4, 4.0, batch_size=2))))

    with FastPath(model.denoiser, [network]):
        wanted = pictures()
        replace_cuda(monkeypatch)
        made = []

        class Watched(captured.CapturedCall):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options)
                made.append(self)

        for module, name, value in (
            (sampling, "can_capture", lambda denoiser: True), (captured, "CapturedCall", Watched),
            (captured, "_side_stream", lambda device: Stream()), (captured, "WORTH", 1),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, value)
        assert torch.equal(pictures(), wanted)
    assert len(made) == 1
