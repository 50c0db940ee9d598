"""What is drawn for a step: always the same for the same (seed, step, rank), and everything in its turn."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sliders.config.schema import PromptSet
from sliders.data.draws import Draws, resolutions, timestep_of

STEPS = 4000


def one_shape(name: int, resolution: int) -> tuple[int, int]:
    return resolution, resolution


def sampler(**changes) -> Draws:
    plain = Draws(
        seed=0, prompts=(PromptSet(target=""),), num_names=3, num_scales=4, max_denoising_steps=50, shape_of=one_shape
    )
    return replace(plain, **changes)


@st.composite
def samplers(draw) -> Draws:
    sets = st.builds(
        lambda resolution, dynamic, batch: PromptSet(
            target="", resolution=resolution, dynamic_resolution=dynamic, batch_size=batch
        ),
        st.sampled_from([64, 96, 512, 1024]),
        st.booleans(),
        st.integers(1, 4),
    )
    kinds = draw(st.integers(1, 3))
    return Draws(
        seed=draw(st.integers(0, 2**63 - 1)),
        prompts=tuple(draw(st.lists(sets, min_size=1, max_size=3))),
        num_names=draw(st.integers(1, 8)),
        num_scales=draw(st.integers(2, 6)),
        max_denoising_steps=draw(st.integers(2, 1000)),
        shape_of=lambda name, resolution: (resolution, name % kinds),
        rank=draw(st.integers(0, 7)),
    )


steps = st.integers(0, 10_000)


@given(samplers(), steps)
def test_a_draw_is_a_pure_function_of_seed_step_and_rank(drawn_from, step):
    draw = drawn_from(step)
    drawn_from(step + 1)  # what was drawn in between changes nothing
    assert replace(drawn_from)(step) == drawn_from(step) == draw


@given(samplers(), steps)
def test_every_index_is_in_range_and_low_is_below_high(drawn_from, step):
    draw = drawn_from(step)
    chosen = drawn_from.prompts[draw.prompt]
    assert len(draw.pairs) == chosen.batch_size
    assert draw.resolution in resolutions(chosen)
    for pair in draw.pairs:
        assert 0 <= pair.name < drawn_from.num_names
        assert 0 <= pair.low < pair.high < drawn_from.num_scales
        assert all(0 <= place < 1 for place in pair.crop)
        assert 0 <= pair.noise_seed < 2**63


@given(samplers(), steps)
def test_all_pairs_of_a_step_have_one_latent_shape(drawn_from, step):
    draw = drawn_from(step)
    assert len({drawn_from.shape_of(pair.name, draw.resolution) for pair in draw.pairs}) == 1


@given(samplers(), steps)
def test_timesteps_are_those_of_the_formula(drawn_from, step):
    n = drawn_from.max_denoising_steps
    allowed = {999 - 1000 * k // n for k in range(1, n)}
    assert {pair.timestep for pair in drawn_from(step).pairs} <= allowed


@pytest.mark.parametrize(
    ("n", "timesteps"),
    [
        (2, [499]),
        (4, [749, 499, 249]),
        (10, [899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (7, [857, 714, 571, 428, 285, 142]),
    ],
)
def test_timesteps_of_short_schedules_by_hand(n, timesteps):
    assert [timestep_of(k, n) for k in range(1, n)] == timesteps


@given(st.integers(2, 1000))
def test_timesteps_fall_strictly_within_0_and_998(n):
    timesteps = [timestep_of(k, n) for k in range(1, n)]
    assert timesteps == sorted(set(timesteps), reverse=True)
    assert timesteps[0] <= 998 and timesteps[-1] >= 0


def test_all_1000_denoising_steps_reach_every_timestep_but_the_last():
    assert [timestep_of(k, 1000) for k in range(1, 1000)] == list(range(998, -1, -1))


def chi_square(counts: Counter, kinds: int) -> float:
    expected = counts.total() / kinds
    return sum((n - expected) ** 2 for n in counts.values()) / expected + (kinds - len(counts)) * expected


@pytest.mark.parametrize("max_denoising_steps", [2, 50, 850])
def test_timesteps_are_drawn_evenly_and_all_of_them(max_denoising_steps):
    """The ancestors drew 32 of them in 4,000 steps."""
    kinds = max_denoising_steps - 1
    rounds = range(max(STEPS, 10 * kinds))
    counts = Counter(sampler(max_denoising_steps=max_denoising_steps)(step).pairs[0].timestep for step in rounds)
    assert len(counts) == kinds
    assert chi_square(counts, kinds) < kinds + 6 * (2 * kinds) ** 0.5  # mean + 6 standard deviations


def test_noise_seeds_hardly_ever_repeat():
    """The ancestors' noise had 31 seeds."""
    assert len({sampler()(step).pairs[0].noise_seed for step in range(STEPS)}) > 3900


def test_pairs_of_one_step_have_their_own_noise_and_timestep():
    drawn_from = sampler(prompts=(PromptSet(target="", batch_size=4),), max_denoising_steps=1000)
    draws = [drawn_from(step) for step in range(200)]
    assert len({pair.noise_seed for draw in draws for pair in draw.pairs}) == 800
    assert sum(len({pair.timestep for pair in draw.pairs}) > 1 for draw in draws) == 200


def test_names_scale_pairs_prompt_sets_and_resolutions_are_drawn_evenly():
    sets = (PromptSet(target="a", resolution=256, dynamic_resolution=True), PromptSet(target="b", resolution=1024))
    drawn_from = sampler(prompts=sets, num_names=7, num_scales=4)
    draws = [drawn_from(step) for step in range(STEPS)]
    dynamic = Counter(d.resolution for d in draws if d.prompt == 0)
    assert set(dynamic) == {256, 192, 128}
    for counts, kinds in [
        (Counter(d.prompt for d in draws), 2),
        (Counter(d.pairs[0].name for d in draws), 7),
        (Counter((d.pairs[0].low, d.pairs[0].high) for d in draws), 6),
        (dynamic, 3),
    ]:
        assert len(counts) == kinds
        assert chi_square(counts, kinds) < kinds + 6 * (2 * kinds) ** 0.5


def test_names_that_share_a_shape_share_batches():
    """Names 0, 2, 4 are of one shape, 1 and 3 of another: both groups appear, each name beside each of its own."""
    drawn_from = sampler(
        prompts=(PromptSet(target="", batch_size=2),), num_names=5, shape_of=lambda name, resolution: name % 2
    )
    together = Counter(frozenset(p.name for p in drawn_from(step).pairs) for step in range(1000))
    assert set(together) == {frozenset(s) for s in [{0}, {2}, {4}, {0, 2}, {0, 4}, {2, 4}, {1}, {3}, {1, 3}]}


def test_other_seeds_steps_and_ranks_draw_otherwise():
    first = [sampler()(step) for step in range(50)]
    assert len(set(first)) == 50
    assert not set(first) & {sampler(seed=1)(step) for step in range(50)}
    assert not set(first) & {sampler(rank=1)(step) for step in range(50)}


@pytest.mark.parametrize(
    ("resolution", "dynamic", "sizes"),
    [
        (512, False, {512}),
        (512, True, {512, 448, 384, 320, 256}),
        (96, True, {96}),
        (64, True, {64}),
        (1024, True, {1024, 960, 896, 832, 768, 704, 640, 576, 512}),
    ],
)
def test_dynamic_resolution_goes_down_to_half_in_steps_of_64(resolution, dynamic, sizes):
    prompts = PromptSet(target="", resolution=resolution, dynamic_resolution=dynamic)
    assert set(resolutions(prompts)) == sizes
