"""Other ways to train Z-Image: from prompts, with quantised weights, checkpointing, and captured calls."""

import itertools

import pytest
import torch
from conftest import script_main
from cpu_graph import Stream, replace_cuda
from experiments import TEXT_SETS, make_trainer, write_text_experiment
from networks import gathered_gradients, randomize
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.quantization import ByteLinear
from sliders.config.families import ZIMAGE
from sliders.config.schema import Network
from sliders.config.settings import load_text_settings
from sliders.fast.graphs import CapturedCalls
from sliders.fast.path import FastPath
from sliders.models.zimage.model import ZImage
from sliders.models.zimage.narrow import build_narrow_zimage
from sliders.sample import captured, sampling
from sliders.sample.sampling import Row, Sampling, sample
from sliders.system.errors import InputError
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer
from test_zimage import FULL, LONG, NaiveZImage

PROMPTS = [  # two of the same multiple of 32 tokens, beside shorter ones, and one as long as those
    {"target": "a disc", "positive": positive, "neutral": "", "resolution": 64}
    for positive in (LONG, LONG.removesuffix(" of a window"), "a disc")
]
SETS = [{**TEXT_SETS[0], "positive": LONG}, TEXT_SETS[1]]  # of different lengths


@pytest.mark.parametrize("shift", [6.0, 3.0], ids=["base", "turbo"])
def test_a_text_step_equals_a_naive_one_in_float64(tmp_path, shift):
    """Its latents are made by Euler's method with guidance 3, or without guidance by Turbo."""
    (settings,), _ = load_text_settings(write_text_experiment(tmp_path, prompts=SETS, network=FULL), "zimage")
    trainer = Trainer(make_plan(settings), ZImage(ZIMAGE, build_narrow_zimage(shift=shift), "tiny"))
    network = trainer.network
    randomize(network)
    naive = NaiveZImage(network.module_paths, [a.down for a in network.adaptors], [a.up for a in network.adaptors])
    draw = next(draw for draw in map(trainer.step.draw, itertools.count()) if draw.prompt == 0)
    chosen, losses = SETS[draw.prompt], []

    def velocity(noisy, s, prompt, multiplier):
        naive.multiplier = multiplier
        return naive.velocity(noisy, s, naive.tokens(prompt))

    for row in draw.rows:
        generator = torch.Generator().manual_seed(row.noise_seed)
        noisy = torch.randn(ZIMAGE.latent_shape(64, 64), generator=generator).double()
        s, last = 1.0, (row.timestep + 1) / 1000
        with torch.no_grad():
            for step in range(1, 6):
                if s > last:
                    after = (1000 - 1000 * step // 6) / 1000
                    prediction = velocity(noisy, s, chosen["target"], row.scale)
                    if shift != 3.0:
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


def test_the_script_trains_a_slider_from_prompts(tmp_path):
    argv = write_text_experiment(tmp_path, prompts=SETS, network=FULL)
    assert script_main("train_lora_zimage")(argv) == 0
    assert list((tmp_path / "models").glob("probe_zimage_*/probe_zimage_*_last.safetensors"))


# --- less memory


def gradients(trainer):
    randomize(trainer.network)
    trainer.step.backward(trainer.step.make_batch(trainer.step.draw(0)))
    return trainer.weights.master.grad


def made(root, name, **overrides):
    (root / name).mkdir()
    return make_trainer(root / name, family="zimage", prompts=PROMPTS[:1], network=FULL, **overrides)


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    plain, checkpointed = (
        gradients(made(tmp_path, str(on), other={"gradient_checkpointing": on})) for on in (False, True)
    )
    assert plain.any()
    assert torch.equal(plain, checkpointed)


def test_int8_stores_the_linear_parts_of_the_layers_and_trains_nearly_alike(tmp_path):
    found = {}
    for kind in ("none", "int8"):
        other = {"gradient_checkpointing": kind == "int8"}
        trainer = made(tmp_path, kind, other=other, pretrained_model={"quantize": kind})
        small = {name for name, m in trainer.model.denoiser.named_modules() if isinstance(m, ByteLinear)}
        modulation = {f"layers.{i}.adaLN_modulation.0" for i in (0, 1)}
        assert small == (set(trainer.network.module_paths) | modulation if kind == "int8" else set())
        found[kind] = gradients(trainer)
    difference = (found["int8"] - found["none"]).norm() / found["none"].norm()
    print("gradient with int8 differs by", difference.item())
    assert 0 < difference < 0.05


@pytest.mark.parametrize("other", [{"fast_path": "off"}, {"attention": "math"}], ids=["plain", "math"])
def test_plain_operations_and_other_kernels_train_alike(tmp_path, other):
    usual, found = gradients(made(tmp_path, "usual")), gradients(made(tmp_path, "other", other=other))
    assert (found - usual).norm() < 1e-5 * usual.norm()


@pytest.mark.parametrize(("name", "why"), [("xformers", "is PyTorch's own"), ("flash", "need a mask")])
def test_kernels_that_cannot_be_used_are_refused(tmp_path, name, why):
    with pytest.raises(
        InputError, match=rf"other\.attention: {name} is not used by Z-Image, because .*{why}.*: use auto"
    ):
        make_trainer(tmp_path, family="zimage", network=FULL, other={"attention": name})


# --- captured calls


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_captured_step_equals_an_uncaptured_one(tmp_path, monkeypatch, checkpointed):
    """Lengths of prompts are values in tensors: a graph serves all batches of one shape, with and without a mask."""
    replace_cuda(monkeypatch)
    other = {"gradient_checkpointing": checkpointed}
    trainer = make_trainer(tmp_path, family="zimage", prompts=PROMPTS, network=FULL, other=other)
    graphs = CapturedCalls(trainer.step.backward, torch.device("cpu"), "training", trainer.weights.drop_gradients)
    randomize(trainer.network)
    shapes, orders = set(), set()
    for number in range(16):
        batch = trainer.step.make_batch(trainer.step.draw(number))
        conditioning = batch.conditioning
        shapes.add((conditioning["tokens"].shape, "attended" in conditioning))
        orders.add(str(conditioning["of_prompt"].sum(1).tolist()))
        loss, gradient = graphs(batch), trainer.weights.master.grad.clone()
        assert torch.equal(loss, trainer.step.backward(batch))
        assert torch.equal(gradient, trainer.weights.master.grad)
    assert (graphs.captured, len(shapes), len(orders)) == (2, 2, 3)


def test_pictures_with_graphs_equal_those_without(monkeypatch):
    model = ZImage(ZIMAGE, build_narrow_zimage(), "tiny")
    embeds = model.encode_prompts([LONG, ""], "cpu")
    network = AdaptorNetwork(model.denoiser, Network(type="c3lier", rank=4, alpha=2.0))
    randomize(network)
    rows = [Row(embeds[LONG], seed, (multiplier,)) for seed, multiplier in enumerate((-1.0, 0.0, 0.5, 2.0))]

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
