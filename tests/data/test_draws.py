"""What is drawn for a step: always the same for the same (seed, step), and everything in its turn."""

import hashlib
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sliders.config.prompts import PromptSet
from sliders.config.schema import Train
from sliders.data.draws import Draws, resolutions
from sliders.data.timesteps import (
    NoiseLevels,
    TimestepDistribution,
    allowed_timesteps,
    biased,
    measured,
    timestep_of,
    unmeasured,
)
from sliders.system.errors import InputError

STEPS = 4000
SCALES = (-2.0, 0.67, 1.0, 1.3, 2.0, 3.0)


def one_shape(image: int, resolution: int) -> tuple[int, int]:
    return resolution, resolution


def timesteps(max_denoising_steps: int, **train) -> TimestepDistribution:
    settings = Train(**{"timestep_bias": 0, "max_denoising_steps": max_denoising_steps, **train})
    return biased(allowed_timesteps(settings), settings.timestep_bias)


def draws_of(**changes) -> Draws:
    plain = Draws(
        seed=0,
        prompts=(PromptSet(target=""),),
        num_images=3,
        scales=SCALES[:4],
        timesteps=timesteps(50),
        shape_of=one_shape,
    )
    return replace(plain, **changes)


@st.composite
def any_draws(draw) -> Draws:
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
        num_images=draw(st.integers(1, 8)),
        scales=SCALES[: draw(st.integers(2, 6))],
        timesteps=timesteps(draw(st.integers(2, 1000))),
        caption_dropout=draw(st.sampled_from([0.0, 0.3])),
        shape_of=lambda image, resolution: (resolution, image % kinds),
        processes=draw(st.integers(1, 4)),
    )


steps = st.integers(0, 10_000)


@given(any_draws(), steps)
def test_a_draw_is_a_pure_function_of_seed_and_step(drawn_from, step):
    draw = drawn_from(step)
    drawn_from(step + 1)  # what was drawn in between changes nothing
    assert replace(drawn_from)(step) == drawn_from(step) == draw


@given(any_draws(), steps)
def test_every_index_is_in_range_and_the_prompt_goes_with_the_scale(drawn_from, step):
    draw = drawn_from(step)
    chosen = drawn_from.prompts[draw.prompt]
    assert len(draw.rows) == 2 * chosen.batch_size * drawn_from.processes
    assert draw.resolution in resolutions(chosen)
    assert [row.positive for row in draw.rows] == [False, True] * (len(draw.rows) // 2)
    for row in draw.rows:
        assert 0 <= row.image < drawn_from.num_images
        assert row.scale == drawn_from.scales[row.folder]
        assert row.scale != drawn_from.scales[0 if row.positive else -1]  # the higher of two is never the lowest
        assert all(0 <= place < 1 for place in row.crop)
        assert 0 <= row.noise_seed < 2**63


@given(any_draws(), steps)
def test_all_rows_of_a_step_have_one_latent_shape(drawn_from, step):
    draw = drawn_from(step)
    assert len({drawn_from.shape_of(row.image, draw.resolution) for row in draw.rows}) == 1


@given(any_draws(), steps)
def test_timesteps_are_those_of_the_distribution(drawn_from, step):
    assert {row.timestep for row in drawn_from(step).rows} <= set(drawn_from.timesteps.timesteps)


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
    """The original trainer drew 32 of them in 4,000 steps."""
    kinds = max_denoising_steps - 1
    rounds = range(max(STEPS, 10 * kinds))
    counts = Counter(draws_of(timesteps=timesteps(max_denoising_steps))(step).rows[0].timestep for step in rounds)
    assert len(counts) == kinds
    assert chi_square(counts, kinds) < kinds + 6 * (2 * kinds) ** 0.5  # mean + 6 standard deviations


def test_noise_seeds_hardly_ever_repeat():
    """The original trainer's noise had 31 seeds."""
    assert len({draws_of()(step).rows[0].noise_seed for step in range(STEPS)}) > 3900


def test_rows_of_one_step_have_their_own_noise_and_timestep():
    drawn_from = draws_of(prompts=(PromptSet(target="", batch_size=4),), timesteps=timesteps(1000))
    draws = [drawn_from(step) for step in range(200)]
    assert len({row.noise_seed for draw in draws for row in draw.rows}) == 1600
    assert sum(len({row.timestep for row in draw.rows}) > 1 for draw in draws) == 200


def as_in_version_0_2(draw):
    rows = ", ".join(
        f"RowDraw(name={r.image}, scale={r.folder}, positive={r.positive}, captioned={r.captioned}, timestep={r.timestep}, "
        f"noise_seed={r.noise_seed}, crop={r.crop})"
        for r in draw.rows
    )
    return f"StepDraw(prompt={draw.prompt}, resolution={draw.resolution}, rows=({rows}))"


def test_draws_without_groups_are_still_those_of_version_0_2():
    """By the digest of 200 steps drawn before `scales_per_step` existed."""
    sets = (PromptSet(target="", resolution=256, dynamic_resolution=True), PromptSet(target="b", batch_size=4))
    drawn_from = draws_of(
        prompts=sets, num_images=7, shape_of=lambda image, resolution: (resolution, image % 2),
        caption_dropout=0.25,
    )  # fmt: skip
    draws = ", ".join(as_in_version_0_2(drawn_from(step)) for step in range(200))
    assert hashlib.sha256(f"[{draws}]".encode()).hexdigest()[:16] == "31a8a1a7a7a6d1da"


@given(any_draws(), steps, st.integers(2, 4))
def test_groups_share_everything_but_the_scale(drawn_from, step, k):
    """And no group has a scale twice; the upper half of it is read with the positive prompt."""
    drawn_from = replace(drawn_from, scales=SCALES[: max(k, len(drawn_from.scales))], scales_per_step=k)
    draw, alone = drawn_from(step), replace(drawn_from, scales_per_step=1)(step)
    assert [row.image for row in draw.rows[::k]] == [row.image for row in alone.rows[::k]]
    for start in range(0, len(draw.rows), k):
        group = draw.rows[start : start + k]
        assert len({replace(row, folder=0, scale=0, positive=False) for row in group}) == 1
        assert [row.scale for row in group] == sorted({row.scale for row in group})
        assert [row.positive for row in group] == [i >= len(group) / 2 for i in range(len(group))]


def test_names_scales_prompt_sets_and_resolutions_are_drawn_evenly():
    sets = (PromptSet(target="a", resolution=256, dynamic_resolution=True), PromptSet(target="b", resolution=1024))
    drawn_from = draws_of(prompts=sets, num_images=7)
    draws = [drawn_from(step) for step in range(STEPS)]
    dynamic = Counter(d.resolution for d in draws if d.prompt == 0)
    assert set(dynamic) == {256, 192, 128}
    for counts, kinds in [
        (Counter(d.prompt for d in draws), 2),
        (Counter(d.rows[0].image for d in draws), 7),
        (Counter(draws[i].rows[i % 2].scale for i in range(STEPS)), 4),
        (dynamic, 3),
    ]:
        assert len(counts) == kinds
        assert chi_square(counts, kinds) < kinds + 6 * (2 * kinds) ** 0.5


def test_names_that_share_a_shape_share_batches():
    """Names 0, 2, 4 are of one shape, 1 and 3 of another: both groups appear, each name beside each of its own."""
    drawn_from = draws_of(
        prompts=(PromptSet(target="", batch_size=1),), num_images=5, shape_of=lambda image, resolution: image % 2
    )
    together = Counter(frozenset(row.image for row in drawn_from(step).rows) for step in range(1000))
    assert set(together) == {frozenset(s) for s in [{0}, {2}, {4}, {0, 2}, {0, 4}, {2, 4}, {1}, {3}, {1, 3}]}


def test_other_seeds_and_steps_draw_otherwise():
    first = [draws_of()(step) for step in range(50)]
    assert len(set(first)) == 50
    assert not set(first) & {draws_of(seed=1)(step) for step in range(50)}


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


@given(st.integers(2, 1000), st.floats(0, 20), st.integers(0, 999), st.integers(0, 999))
def test_a_distribution_stays_within_its_range_and_its_shares_add_up(n, bias, low, high):
    within = [t for t in (timestep_of(k, n) for k in range(1, n)) if low <= t <= high]
    if not within:
        with pytest.raises(InputError, match=r"train\.min_timestep"):
            timesteps(n, timestep_bias=bias, min_timestep=low, max_timestep=high)
        return
    found = timesteps(n, timestep_bias=bias, min_timestep=low, max_timestep=high)
    assert list(found.timesteps) == within
    assert sum(found.shares) == pytest.approx(1)
    assert found.draw(0.0) in within and found.draw(1 - 2**-53) in within


def test_timesteps_come_as_often_as_their_share_says():
    """bias 3: p(t) in proportion to (t + 1)^3, so 15/16 of the draws are above 499."""
    found = timesteps(1000, timestep_bias=3)
    drawn = [found.draw((i + 0.5) / 10_000) for i in range(10_000)]
    assert sum(t > 499 for t in drawn) / 10_000 == pytest.approx(15 / 16, abs=0.002)
    assert sum(t > 749 for t in drawn) / 10_000 == pytest.approx(1 - 0.75**4, abs=0.002)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_logit_normal_timesteps_come_as_a_shifted_sigmoid_of_normal_numbers_does(shift):
    found = unmeasured(tuple(range(1000)), Train(timestep_shift=shift))
    u = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sigmoid()
    s = shift * u / (1 + (shift - 1) * u)
    for edge in (100, 300, 500, 750, 900):
        assert sum(found.shares[:edge]) == pytest.approx((s < edge / 1000).double().mean().item(), abs=0.005)
    assert found.median == pytest.approx(1000 * shift / (1 + shift), abs=1)


def test_a_shift_and_a_bias_are_not_both_taken():
    with pytest.raises(ValueError, match="timestep_shift replaces timestep_bias"):
        Train(timestep_shift=3, timestep_bias=2)


def test_a_measured_distribution_follows_the_differences_and_evens_out_the_errors():
    """Differences of 1 up to 500 and 4 at 1000, errors of 0.1 and 0.01: shares 1 and 2, weights 1 and 10."""
    levels = NoiseLevels((0, 500, 999), (1.0, 1.0, 4.0), (0.1, 0.1, 0.01))
    found = measured((100, 400, 999), levels)
    assert found.shares == pytest.approx((0.25, 0.25, 0.5))
    assert found.weights[2] / found.weights[0] == pytest.approx(10)
    assert sum(s * w for s, w in zip(found.shares, found.weights, strict=True)) == pytest.approx(1)
    fallen = measured((100, 999), NoiseLevels((0, 999), (2.0, 1.0), (1.0, 1.0)))
    assert fallen.shares == pytest.approx((0.5, 0.5))  # what noise hides at one level it hides at every noisier one


def test_caption_dropout_leaves_out_its_share_of_the_captions():
    drawn_from = draws_of(caption_dropout=0.25)
    rows = [row for step in range(2000) for row in drawn_from(step).rows]
    assert sum(not row.captioned for row in rows) / len(rows) == pytest.approx(0.25, abs=0.03)
    assert all(row.captioned for step in range(500) for row in draws_of()(step).rows)


def test_no_row_is_drawn_at_scale_0_and_the_others_come_equally_often():
    drawn_from = draws_of(scales=(-2.0, -1.0, 0.0, 1.0, 2.0), prompts=(PromptSet(target="", batch_size=2),))
    rows = [row for step in range(STEPS) for row in drawn_from(step).rows]
    counts = Counter(row.scale for row in rows)
    assert set(counts) == {-2, -1, 1, 2}
    assert all(count / len(rows) == pytest.approx(1 / 4, abs=0.02) for count in counts.values())
    assert {row.positive for row in rows if row.scale == -2} == {False}  # the lower of any two
    assert {row.positive for row in rows if row.scale == 2} == {True}
    assert {row.positive for row in rows if row.scale == 1} == {False, True}


@pytest.mark.parametrize("scales", [(0.0, 2.0), (-2.0, 0.0)])
def test_of_two_folders_one_at_0_only_the_other_is_drawn(scales):
    """With the prompt that it had beside the image at 0, also where rows are to be grouped by scales."""
    for together in (1, 2):
        drawn_from = draws_of(scales=scales, scales_per_step=together)
        rows = [row for step in range(100) for row in drawn_from(step).rows]
        assert {(row.scale, row.positive) for row in rows} == {(sum(scales), scales[0] == 0)}
        assert len(rows) == 200


def test_only_rows_at_scale_0_are_drawn_otherwise_than_without_a_folder_at_0():
    before, now = (draws_of(scales=(-2.0, middle, 1.0, 2.0)) for middle in (-1.0, 0.0))
    for step in range(200):
        for then, row in zip(before(step).rows, now(step).rows, strict=True):
            if then.scale == -1:
                assert row.scale != 0
                assert replace(row, folder=then.folder, scale=then.scale, positive=then.positive) == then
            else:
                assert row == then


@given(any_draws(), steps, st.integers(2, 4), st.data())
def test_groups_leave_scale_0_out_too(drawn_from, step, k, data):
    untrained = data.draw(st.sampled_from(drawn_from.scales))
    scales = tuple(0.0 if scale == untrained else scale for scale in drawn_from.scales)
    draw = replace(drawn_from, scales_per_step=k, scales=scales)(step)
    assert 0 not in {row.scale for row in draw.rows}
    assert len(draw.rows) == len(drawn_from(step).rows)
