"""One optimizer step against the naive reimplementation in naive.py, and what a step must never do."""

import dataclasses

import pytest
import torch
from conftest import write_experiment
from experiments import FOLDERS, PROMPTS, make_trainer
from naive import NaiveTrainer
from networks import gathered_gradients, randomize
from sliders.config.schema import PretrainedModel
from sliders.config.settings import load_settings
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.train.monitor import NonFiniteError
from sliders.train.optimizers import build_lr_scheduler
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer


def naive_trainer(trainer):
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)
    network = trainer.network
    downs, ups = [a.down for a in network.adaptors], [a.up for a in network.adaptors]
    alpha = trainer.settings.network.alpha
    return NaiveTrainer(model.denoiser, model.pipe.vae, network.module_paths, downs, ups, alpha)


def naive_loss(naive, trainer, draw):
    """Loss of one draw; the random numbers are drawn in the documented order: noise, posterior."""
    losses = []
    chosen = trainer.settings.prompts[draw.prompt]
    embeds = trainer.step.make_batch.prompt_embeds
    for row in draw.rows:
        generator = torch.Generator().manual_seed(row.noise_seed)
        noise, eps = (torch.randn(4, 8, 8, generator=generator) for _ in range(2))
        folder, name = trainer.settings.data.folder_main, trainer.data.names[row.image]
        latents = naive.encode(folder / FOLDERS[row.folder] / f"{name}.png", eps)
        prompt = embeds[chosen.positive if row.positive else chosen.neutral]
        losses.append(
            naive.row(latents, noise[None].double(), row.timestep, prompt, embeds[chosen.neutral], 64, row.scale)
        )
    return 2 * sum(losses) / len(losses)


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("step", range(6))
def test_a_step_equals_the_original_with_folders_at_their_own_scales(tmp_path, step):
    """Steps 0 to 5 draw both prompt sets, two and six rows a step."""
    trainer = make_trainer(tmp_path)
    randomize(trainer.network)
    draw = trainer.step.draw(step)
    naive = naive_trainer(trainer)
    wanted = naive_loss(naive, trainer, draw)

    loss = trainer.step.loss_of(trainer.step.make_batch(draw))
    loss.backward()

    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    found = gathered_gradients(trainer)
    for i, path in enumerate(trainer.network.module_paths):
        share = 2 / len(draw.rows)
        assert relative_error(found[f"adaptors.{i}.down"], naive.lora.downs[path].grad * share) < 2e-4, path
        assert relative_error(found[f"adaptors.{i}.up"], naive.lora.ups[path].grad * share) < 2e-4, path


def test_both_kinds_of_step_were_among_them(tmp_path):
    trainer = make_trainer(tmp_path)
    assert {len(trainer.step.draw(step).rows) for step in range(6)} == {2, 6}


@pytest.mark.parametrize("swapped", [(0, 1), (1, 2), (2, 3), (0, 3), (0, 2), (1, 3)])
def test_folder_i_is_trained_at_scale_i(tmp_path, swapped):
    """The comparison above notices any two folders being swapped: gradients then are far from the naive step's."""
    order = list(FOLDERS)
    i, j = swapped
    order[i], order[j] = order[j], order[i]
    trainer = make_trainer(tmp_path, folders=tuple(order), prompts=PROMPTS[:1], train={"timestep_bias": 0})
    randomize(trainer.network)
    draws = (trainer.step.draw(step) for step in range(1000))
    draw = next(d for d in draws if any(row.folder in (i, j) and row.timestep < 200 for row in d.rows))
    trainer.step.loss_of(trainer.step.make_batch(draw)).backward()
    naive = naive_trainer(trainer)
    naive_loss(naive, trainer, draw)
    found = gathered_gradients(trainer)
    wanted = {f"adaptors.{i}.up": naive.lora.ups[path].grad for i, path in enumerate(trainer.network.module_paths)}
    assert max(relative_error(found[name], gradient) for name, gradient in wanted.items()) > 0.01


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    """Per-row multipliers are read again when the forward is repeated inside backward."""
    gradients = []
    for checkpointing in (False, True):
        trainer = make_trainer(tmp_path / str(checkpointing), other={"gradient_checkpointing": checkpointing})
        randomize(trainer.network)
        trainer.step.loss_of(trainer.step.make_batch(trainer.step.draw(0))).backward()
        gradients.append(gathered_gradients(trainer).values())
        assert any(
            m.gradient_checkpointing for m in trainer.model.denoiser.modules() if hasattr(m, "gradient_checkpointing")
        ) is (checkpointing)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(*gradients, strict=True))


def test_only_the_adaptors_learn(tmp_path):
    trainer = make_trainer(tmp_path)
    before = {k: v.clone() for k, v in trainer.model.denoiser.state_dict().items()}
    for step in range(2):
        trainer.step(step)
    assert all(torch.equal(before[k], v) for k, v in trainer.model.denoiser.state_dict().items())
    assert all(p.dtype == torch.float32 and p.abs().sum() > 0 for p in trainer.network.parameters())


def test_bfloat16_trains_float32_adaptors(tmp_path):
    trainer = make_trainer(tmp_path, train={"precision": "bfloat16"})
    full = make_trainer(tmp_path / "full")
    assert trainer.model.denoiser.dtype == torch.bfloat16
    assert trainer.model.pipe.vae.dtype == torch.float32
    assert trainer.step(0).loss == pytest.approx(full.step(0).loss, rel=0.02)
    assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}


def test_amp_runs_a_float32_model_in_bfloat16(tmp_path):
    trainer = make_trainer(tmp_path, other={"torch_amp": True})
    full = make_trainer(tmp_path / "full")
    loss, exact = (t.step.loss_of(t.step.make_batch(t.step.draw(0))).item() for t in (trainer, full))
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.02)


def test_a_non_finite_gradient_stops_before_the_optimizer(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.step(0)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    batches = trainer.step.make_batch
    trainer.step.make_batch = lambda draw: dataclasses.replace(batches(draw), noise=batches(draw).noise * float("inf"))
    draw = trainer.step.draw(1)
    bad = trainer.step(1)
    trainer.step.make_batch = batches
    later = trainer.step(2)  # nobody has looked yet
    with pytest.raises(NonFiniteError) as stopped:
        trainer.read([bad, later])
    assert "step 2" in str(stopped.value)
    assert trainer.data.names[draw.rows[0].image] in str(stopped.value)
    assert f"{draw.rows[0].scale:g}" in str(stopped.value)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


def spoil_steps(trainer, steps):
    """These steps get noise that is not a number."""
    batches, draws = trainer.step.make_batch, {id_of(trainer.step.draw(step)) for step in steps}
    trainer.step.make_batch = lambda draw: (
        dataclasses.replace(batches(draw), noise=batches(draw).noise * float("nan"))
        if id_of(draw) in draws
        else batches(draw)
    )


def id_of(draw):
    return draw.rows[0].noise_seed


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_every_optimizer_is_kept_from_it(tmp_path, optimizer):
    """Fused AdamW by a flag on the device, the others by looking first."""
    trainer = make_trainer(tmp_path, train={"optimizer": optimizer})
    before = trainer.weights.master.detach().clone()
    spoil_steps(trainer, [0])
    with pytest.raises(NonFiniteError, match="step 1 "):
        trainer.read([trainer.step(0)])
    assert torch.equal(trainer.weights.master, before)


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_tolerated_steps_are_left_out_and_the_next_ones_learnt(tmp_path, optimizer):
    """Steps 2 and 3 of 4 are bad. The weights stand still in them, and move in the fourth."""
    trainer = make_trainer(tmp_path, train={"optimizer": optimizer, "skip_nonfinite": 2})
    spoil_steps(trainer, [1, 2])
    results, weights = [], []
    for step in range(4):
        results.append(trainer.step(step))
        weights.append(trainer.weights.master.detach().clone())
    trainer.read(results)
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert weights[3].isfinite().all()


def test_more_in_a_row_than_tolerated_stop_with_a_state_from_before(tmp_path, capsys):
    """Which --resume goes on from, with the advice taken."""
    overrides = {"iterations": 6, "skip_nonfinite": 1, "lr_scheduler": "cosine"}
    trainer = make_trainer(tmp_path, train=overrides)
    spoil_steps(trainer, [0, 3, 4])
    with pytest.raises(NonFiniteError, match=r"step 5 .* the last of 2 in a row.*--resume"):
        trainer.run()
    kept = trainer.weights.master.detach().clone()
    assert "step 1 " in capsys.readouterr().out
    again = make_trainer(tmp_path, flags=["--resume"], train={**overrides, "lr": 1e-4})
    again.resume()
    assert again.done == 3
    assert torch.equal(again.weights.master, kept)
    assert "train.lr was 0.001 and is now 0.0001" in capsys.readouterr().out
    assert again.learner.lr == pytest.approx(0.0001 * (0.01 + 0.99 / 2))  # half-way down the cosine
    assert len(again.run().losses) == 3


@pytest.mark.parametrize("still", [True, False])
def test_an_adaptor_that_does_not_move_is_told_after_100_steps(tmp_path, capsys, still):
    trainer = make_trainer(tmp_path)
    result = trainer.step(0)
    zero = dataclasses.replace(result, values=torch.tensor([1.0, 0.0 if still else 0.1]))
    trainer.read([zero] * 99)
    assert "has not changed" not in capsys.readouterr().out
    trainer.read([zero] * 10)
    assert ("the adaptor has not changed in 109 steps" in capsys.readouterr().out) is still
    trainer.read([zero] * 200)
    assert "has not changed" not in capsys.readouterr().out


def test_a_vae_that_yields_no_numbers_names_the_image(tmp_path):
    from sliders.system.errors import InputError

    make_trainer(tmp_path)  # writes the data set
    argv = write_experiment(tmp_path, data=tmp_path / "data", flags=["--folders", "small, base", "--scales", "1, 2"])
    (settings,), _ = load_settings(argv)
    model = SDXL_FAMILY.load(settings.pretrained_model, torch.float32)
    with torch.no_grad():
        model.pipe.vae.encoder.conv_in.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"small/a\.png: the VAE yields latents that are not finite"):
        Trainer(make_plan(settings), model)


def test_gradients_are_clipped_to_max_grad_norm(tmp_path):
    """With plain gradient descent (Adam without momentum would hide it) the step's length is at most lr · max_grad_norm."""
    trainer = make_trainer(tmp_path, train={"max_grad_norm": 1e-3})
    trainer.learner.optimizer = torch.optim.SGD([trainer.weights.master], lr=1.0)
    trainer.learner.lr_scheduler = build_lr_scheduler(trainer.settings.train, trainer.learner.optimizer)
    before = torch.cat([p.detach().flatten().clone() for p in trainer.network.parameters()])
    norm = trainer.step(0).grad_norm
    after = torch.cat([p.detach().flatten() for p in trainer.network.parameters()])
    assert norm > 1e-3
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("algo", ["lora", "loha", "lokr", "glora", "full"])
def test_a_row_at_scale_0_has_no_gradient_and_changes_none(tmp_path, algo):
    """So such rows need not be drawn: not one bit of the others' gradients depends on them."""
    trainer = make_trainer(tmp_path, network={"algo": algo, "type": "lierla"}, prompts=PROMPTS[:1])
    randomize(trainer.network)
    trainer.weights.refresh()
    batch = trainer.step.make_batch(trainer.step.draw(0))
    trainer.step.gradient(dataclasses.replace(batch, scales=torch.zeros_like(batch.scales)))
    assert all(not gradient.any() for gradient in gathered_gradients(trainer).values())
