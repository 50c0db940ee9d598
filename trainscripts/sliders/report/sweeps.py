"""What is measured on sweeps: the pictures of one prompt and seed at ascending multipliers. The guide defines each measure."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rank_correlation(multipliers: Sequence[float], readings: Tensor) -> Tensor:
    """Spearman's rank correlation (1904) of each sweep's readings [sweeps, M] with the ascending multipliers, [sweeps].

    Equal readings share the mean of their ranks. A sweep whose readings are all equal has 0.
    """
    above, equal = (readings[:, :, None] > readings[:, None, :]), (readings[:, :, None] == readings[:, None, :])
    ranks = above.sum(2) + equal.sum(2).double() / 2
    centred = ranks - ranks.mean(1, keepdim=True)
    wanted = torch.arange(len(multipliers), dtype=centred.dtype) - (len(multipliers) - 1) / 2
    return (centred @ wanted) / (centred.norm(dim=1) * wanted.norm()).clamp(min=1e-12)


def roughness(features: Tensor) -> Tensor:
    """The largest detour of each sweep's [sweeps, M, D], [sweeps]: how much longer the way over the middle one of three
    neighbours is than the straight one. 0 if all of them lie on a line, and if there are fewer than three."""
    steps = (features[:, 1:] - features[:, :-1]).norm(dim=2)
    straight = (features[:, 2:] - features[:, :-2]).norm(dim=2)
    detours = steps[:, 1:] + steps[:, :-1] - straight
    return detours.amax(1) if detours.shape[1] else detours.new_zeros(len(features))


class Foreign:
    """Projects features onto what the folders do not change: all that is orthogonal to the differences of their means."""

    def __init__(self, folders: Tensor):
        """folders: standardised features [scenes, scales, D] of the images that show the attribute at each scale."""
        means = folders.mean(0)
        _, sizes, directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)
        self._directions = directions[sizes > 1e-6 * sizes.max()]
        rest = self(folders)
        self.unit = _mean_distance(rest).clamp(min=1e-12)  # of scenes that are all the same
        ends = (rest[:, -1] - rest[:, 0]).norm(dim=1)
        self.in_folders = (ends.mean() / self.unit).item()

    def __call__(self, features: Tensor) -> Tensor:
        """[..., D] → [..., D]"""
        return features - features @ self._directions.T @ self._directions


def _mean_distance(features: Tensor) -> Tensor:
    """Between two scenes at the same scale. features: [scenes, scales, D]."""
    distances = torch.stack([torch.pdist(features[:, scale]).mean() for scale in range(features.shape[1])])
    return distances.mean()


def recognised(features: Tensor, inside: Tensor, prompts: Sequence[int] | None = None) -> Tensor | None:
    """For each picture of [sweeps, M, D], whether its own sweep is nearer than all those of other prompts: [sweeps, M].

    prompts: a number for each sweep's. None, and where all are the same: each sweep counts as a prompt of its own. A sweep
    lies at the mean of its pictures at the multipliers `inside` [M] bool, of at least two, without the picture that is
    compared. None for a single sweep, which could not be mistaken for another.
    """
    if len(features) < 2:
        return None
    count, total = inside.sum(), features[:, inside].sum(1)
    distances = torch.cdist(features.flatten(0, 1), total / count).unflatten(0, features.shape[:2])
    others = torch.where(inside[:, None], (total[:, None] - features) / (count - 1), total[:, None] / count)
    own = torch.arange(len(features))
    distances[own, :, own] = (features - others).norm(dim=2)
    shown = own if prompts is None or len(set(prompts)) == 1 else torch.tensor(prompts)
    seeds = (shown[:, None] == shown) & (own[:, None] != own)  # other sweeps of the same prompt
    return distances.masked_fill(seeds[:, None], float("inf")).argmin(2) == own[:, None]


def longest_run(holds: Sequence[bool]) -> tuple[int, int] | None:
    """The first and last position of the longest run of true values, None if there are none."""
    best, start = None, 0
    for end, value in enumerate(holds):
        if not value:
            start = end + 1
        elif best is None or end - start > best[1] - best[0]:
            best = start, end
    return best
