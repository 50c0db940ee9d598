"""Measures on sweeps against their definitions, written out with loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sliders.report.sweeps import Foreign, longest_run, rank_correlation, recognised, roughness


def naive_ranks(values):
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def naive_spearman(values):
    a, b = naive_ranks(range(len(values))), naive_ranks(values)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    above = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    below = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return above / below if below else 0.0


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9))
def test_rank_correlation_equals_spearmans(values):
    found = rank_correlation(range(len(values)), torch.tensor([values], dtype=torch.float64))
    assert found.item() == pytest.approx(naive_spearman(values), abs=1e-9)


def test_roughness_is_the_largest_detour_of_three_neighbours():
    line = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0], [4.0, 4.0]], dtype=torch.float64)
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    found = roughness(torch.stack([line, corner]))
    assert found.tolist() == pytest.approx([0.0, 2 - math.sqrt(2)])
    assert roughness(torch.stack([line, corner])[:, :2]).tolist() == [0.0, 0.0]


def test_foreign_change_leaves_out_what_the_folders_show():
    """Scenes differ in the first two features, the scale in the third; a fourth changes in no folder."""
    scenes = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 8.0]], dtype=torch.float64)
    folders = torch.zeros(3, 4, 4, dtype=torch.float64)
    folders[..., :2] = scenes[:, None]
    folders[..., 2] = torch.tensor([0.67, 1.0, 1.3, 2.0])
    foreign = Foreign(folders)
    moved = torch.tensor([1.0, 2.0, 100.0, 3.0], dtype=torch.float64)
    assert foreign(moved).tolist() == pytest.approx([1.0, 2.0, 0.0, 3.0])
    assert foreign.unit.item() == pytest.approx((6 + 8 + 10) / 3)
    assert foreign.in_folders == pytest.approx(0.0, abs=1e-9)


def test_recognised_is_the_nearest_sweep_without_the_picture_itself():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64) + torch.arange(4.0).view(4, 1, 1)
    inside = torch.tensor([False, True, True, True, False])
    found = recognised(features, inside)
    for sweep in range(4):
        for column in range(5):
            distances = []
            for other in range(4):
                rest = [c for c in range(5) if inside[c] and not (other == sweep and c == column)]
                distances.append((features[sweep, column] - features[other, rest].mean(0)).norm().item())
            assert found[sweep, column].item() == (min(distances) == distances[sweep])
    assert 0 < found.double().mean() < 1
    assert recognised(features[:1], inside) is None


@given(st.lists(st.booleans(), max_size=12))
def test_the_longest_run(holds):
    found = longest_run(holds)
    runs = [(i, j) for i in range(len(holds)) for j in range(i, len(holds)) if all(holds[i : j + 1])]
    if not runs:
        assert found is None
    else:
        assert all(holds[found[0] : found[1] + 1])
        assert found[1] - found[0] == max(j - i for i, j in runs)


def test_other_seeds_of_a_prompt_are_not_what_a_picture_is_mistaken_for():
    """Four sweeps on a line, two of each prompt; in the second, the last picture lies at the first."""
    places = torch.tensor(
        [[0.0, 0.1, 0.2], [1.0, 1.1, 0.1], [10.0, 10.1, 10.2], [12.0, 12.1, 10.0]], dtype=torch.float64
    )
    sweeps, inside = places[:, :, None], torch.ones(3, dtype=torch.bool)
    own = torch.ones(4, 3, dtype=torch.bool)
    wrong = own.clone()
    wrong[1, 2] = wrong[3, 2] = False
    assert torch.equal(recognised(sweeps, inside), wrong)
    assert torch.equal(recognised(sweeps, inside, [0, 0, 0, 0]), wrong)
    assert torch.equal(recognised(sweeps, inside, [0, 0, 1, 1]), own)
    swapped = sweeps.clone()
    swapped[1, 2] = 10.5
    assert not recognised(swapped, inside, [0, 0, 1, 1])[1, 2]
