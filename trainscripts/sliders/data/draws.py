"""What is drawn for a step: prompt set, images, scales, timesteps, noise, crops. A pure function of (seed, step, rank).

Only Python's own Mersenne Twister seeded with a string is used: the same draws on every platform and library version.
"""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from sliders.config.schema import PromptSet

NUM_TRAIN_TIMESTEPS = 1000
RESOLUTION_STEP = 64


@dataclass(frozen=True)
class PairDraw:
    """One image name at two scales, noised alike."""

    name: int  # index of the image name
    low: int  # index of the lower scale
    high: int  # index of the higher scale, > low
    timestep: int
    noise_seed: int
    crop: tuple[float, float]  # place of a random crop, top and left, each in [0, 1)
    source: int  # index of the scale whose image the crossing losses add noise to


@dataclass(frozen=True)
class StepDraw:
    prompt: int  # index of the prompt set
    resolution: int  # px
    pairs: tuple[PairDraw, ...]


def timestep_of(k: int, max_denoising_steps: int) -> int:
    """Timestep of denoising step k, 1 ≤ k < max_denoising_steps: from near 999 (noise) down to near 0 (image)."""
    return NUM_TRAIN_TIMESTEPS - 1 - NUM_TRAIN_TIMESTEPS * k // max_denoising_steps


def resolutions(prompts: PromptSet) -> tuple[int, ...]:
    """Sizes in px that a prompt set trains at: its `resolution`, with `dynamic_resolution` also down to half of it."""
    if not prompts.dynamic_resolution:
        return (prompts.resolution,)
    return tuple(range(prompts.resolution, prompts.resolution // 2 - 1, -RESOLUTION_STEP))


@dataclass(frozen=True)
class Draws:
    """`sampler(step)` → `StepDraw`.

    `shape_of(name, resolution)` tells the shape of an image's latents; images of one step must agree in it to be one
    batch. All draws are uniform: prompt set, resolution, name, pair of different scales, denoising step.
    """

    seed: int
    prompts: Sequence[PromptSet]
    num_names: int
    num_scales: int
    max_denoising_steps: int
    shape_of: Callable[[int, int], Hashable]
    rank: int = 0

    def __call__(self, step: int) -> StepDraw:
        rng = random.Random(f"{self.seed}/{step}/{self.rank}")
        prompt = rng.randrange(len(self.prompts))
        chosen = self.prompts[prompt]
        resolution = rng.choice(resolutions(chosen))
        first = rng.randrange(self.num_names)
        shape = self.shape_of(first, resolution)
        alike = [n for n in range(self.num_names) if self.shape_of(n, resolution) == shape]
        names = [first] + [rng.choice(alike) for _ in range(chosen.batch_size - 1)]
        return StepDraw(prompt, resolution, tuple(self._pair(rng, name) for name in names))

    def _pair(self, rng: random.Random, name: int) -> PairDraw:
        low, high = sorted(rng.sample(range(self.num_scales), 2))
        timestep = timestep_of(rng.randrange(1, self.max_denoising_steps), self.max_denoising_steps)
        noise_seed, crop = rng.getrandbits(63), (rng.random(), rng.random())
        return PairDraw(name, low, high, timestep, noise_seed, crop, source=rng.randrange(self.num_scales))
