"""The ruler against ridge regression written out in float64, and on features whose scale is known."""

import pytest
import torch
from sliders.report.ruler import SHARES, STRENGTHS, Ruler

SCALES = (0.67, 1.0, 1.3, 2.0)


def made_features(scenes=8, cells=4, channels=6, seed=0, noise=0.0):
    """[scenes, scales, 1 + cells, channels]: one direction follows the scale, others follow the scene."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scale = torch.tensor(SCALES, dtype=torch.float64).view(1, -1, 1, 1)
    shape = (1 + cells, channels)
    scene = (random(scenes, 1, 2, 1, 1) * random(2, *shape)).sum(2)
    return 3 + 5 * scale * random(*shape) + 4 * scene + noise * random(scenes, len(SCALES), *shape)


def naive_reading(features, wanted, picture, share, strength):
    """Ridge regression in its primal form."""
    rows = features.flatten(0, 1)
    mean, deviation = rows.mean(0), rows.std(0)
    cells = len(deviation) - 1
    deviation = torch.cat([deviation[:1], deviation[1:] * (cells / share) ** 0.5])
    x = ((rows - mean) / deviation).flatten(1)
    y = (wanted - wanted.mean()).repeat(len(features))
    penalty = strength * (x * x).sum(1).mean()
    weight = torch.linalg.inv(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)) @ x.T @ y
    return ((picture - mean) / deviation).flatten(-2) @ weight + wanted.mean()


def test_readings_and_error_equal_ridge_regression_written_out():
    features, wanted = made_features(noise=1.0), torch.tensor(SCALES, dtype=torch.float64)
    ruler = Ruler.fit(features, SCALES)
    errors = {}
    for share in SHARES:
        for strength in STRENGTHS:
            found = []
            for scene in range(len(features)):
                others = features[[i for i in range(len(features)) if i != scene]]
                found.append((naive_reading(others, wanted, features[scene], share, strength) - wanted).abs().mean())
            errors[share, strength] = torch.stack(found).mean().item()
    best = min(errors, key=errors.get)
    assert ruler.error == pytest.approx(errors[best], rel=1e-6)
    new = made_features(seed=1, noise=1.0)
    assert torch.allclose(ruler.read(new), naive_reading(features, wanted, new, *best), atol=1e-6)


def test_it_reads_scenes_that_it_never_saw():
    features = made_features(scenes=9)
    ruler = Ruler.fit(features[:8], SCALES)
    assert torch.allclose(ruler.read(features[8]), torch.tensor(SCALES, dtype=torch.float64), atol=0.02)
    assert ruler.error < 0.02


def test_its_error_tells_of_folders_that_show_nothing():
    noise = torch.randn(8, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ruler = Ruler.fit(noise, SCALES)
    guessing = sum(abs(s - sum(SCALES) / 4) for s in SCALES) / 4
    assert ruler.error > 0.8 * guessing


def test_features_that_never_change_are_ignored():
    features = made_features()
    features[..., 0] = 7.0
    read = Ruler.fit(features, SCALES).read(features + 0.0)
    assert read.isfinite().all()
