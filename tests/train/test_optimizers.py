"""Every optimizer and schedule works, and optimizer_args run no code."""

import math
from itertools import pairwise

import pytest
import torch
from sliders.config.schema import OPTIMIZERS, Train
from sliders.system.errors import InputError
from sliders.train.optimizers import build_lr_scheduler, build_optimizer, parse_optimizer_args, replay_schedule

SCHEDULES = ("constant", "cosine", "cosine_with_restarts", "step", "linear")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_reduces_the_loss(name):
    """Least squares from a fixed start. 8-bit optimizers use 8 bits only for tensors of at least 4,096 elements."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(64, 128, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(64, 128))
    optimizer = build_optimizer(Train(optimizer=name, lr=1.0 if name in ("prodigy", "dadaptadam") else 1e-2), [weight])
    losses = []
    for _ in range(60):
        loss = (weight - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert weight.isfinite().all()


@pytest.mark.parametrize("name", ["adam8bit", "adamw8bit", "lion8bit"])
def test_8bit_optimizers_use_8_bits(name):
    weight = torch.nn.Parameter(torch.zeros(64, 128))
    optimizer = build_optimizer(Train(optimizer=name), [weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert torch.uint8 in {s.dtype for s in optimizer.state[weight].values() if torch.is_tensor(s)}


def rates(schedule, iterations, lr=1.0):
    train = Train(lr=lr, lr_scheduler=schedule, iterations=iterations)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return rates_of(build_lr_scheduler(train, optimizer), optimizer, iterations)


def rates_of(scheduler, optimizer, steps):
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("iterations", [1, 2, 9, 99, 100, 500])
def test_every_schedule_works_for_every_number_of_iterations(schedule, iterations):
    found = rates(schedule, iterations)
    assert found[0] == 1.0
    assert all(0 < rate <= 1.0 for rate in found)


def test_schedules_follow_their_formulas():
    n = 200
    assert set(rates("constant", n)) == {1.0}
    cosine = [0.01 + 0.99 * (1 + math.cos(math.pi * i / n)) / 2 for i in range(n)]
    assert rates("cosine", n) == pytest.approx(cosine)
    assert rates("linear", n) == pytest.approx([1 - 0.99 * i / n for i in range(n)])
    assert rates("step", n) == pytest.approx([0.999 ** (i // 2) for i in range(n)])
    restarts = [i for i, (a, b) in enumerate(pairwise(rates("cosine_with_restarts", n))) if b > a]
    assert restarts == [19, 59, 139]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_longer_run_follows_the_longer_schedule(schedule):
    short, longer = (Train(lr=1e-2, lr_scheduler=schedule, iterations=n) for n in (20, 40))
    optimizer = build_optimizer(short, [torch.nn.Parameter(torch.zeros(1))])
    rates_of(build_lr_scheduler(short, optimizer), optimizer, 20)
    resumed = replay_schedule(longer, optimizer, [1e-2], 20)
    assert rates_of(resumed, optimizer, 20) == rates(schedule, 40, lr=1e-2)[20:]


def test_optimizer_args_are_passed_on():
    optimizer = build_optimizer(
        Train(optimizer="adamw", optimizer_args="weight_decay=0.25 betas=(0.8,0.9) amsgrad=True"),
        [torch.nn.Parameter(torch.zeros(1))],
    )
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"], group["amsgrad"]) == (0.25, (0.8, 0.9), True)


@pytest.mark.parametrize(
    "text", ["x=__import__('os').system('touch','y')", "weight_decay", "=1", "a-b=1", "w=(1", "x=open('y')"]
)
def test_optimizer_args_that_are_not_literals_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="optimizer_args"):
        parse_optimizer_args(text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["weight_decay=0.01, betas=(0.9,0.99)", "weight_decay = 0.01 betas = (0.9, 0.99)",
                                  "weight_decay=0.01,betas=(0.9, 0.99),", "  weight_decay=0.01\n betas=( 0.9 , 0.99 )"])  # fmt: skip
def test_optimizer_args_may_be_separated_by_commas_and_hold_spaces(text):
    assert parse_optimizer_args(text) == {"weight_decay": 0.01, "betas": (0.9, 0.99)}


def test_an_optimizer_argument_that_is_given_twice_is_refused():
    with pytest.raises(InputError, match="eps is given twice"):
        parse_optimizer_args("eps=1 eps=2")
