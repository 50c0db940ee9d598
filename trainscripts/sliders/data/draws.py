"""What a step trains on: prompt set, images, scales, timesteps, noise, crops. A pure function of (seed, step).

Only Python's own Mersenne Twister seeded with a string is used: the same draws on every platform and library version.
"""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from sliders.config.prompts import PromptSet
from sliders.data.timesteps import TimestepDistribution

RESOLUTION_STEP = 64
ROWS_PER_PAIR = 2  # `batch_size` counts pairs, as in Concept Sliders


@dataclass(frozen=True)
class RowDraw:
    """One image at one scale, with its own noise."""

    image: int  # index of the image name
    folder: int  # index of the scale folder
    scale: float  # the multiplier that the folder stands for
    positive: bool  # read with the prompt `positive`; otherwise with `neutral`
    captioned: bool  # False: caption dropout, so the row is read with an empty prompt
    timestep: int
    noise_seed: int
    crop: tuple[float, float]  # place of a random crop, top and left, each in [0, 1)


@dataclass(frozen=True)
class TextRowDraw:
    """One noise from which the adapted model makes latents."""

    scale: float  # the multiplier
    timestep: int  # how noisy the latents still are
    noise_seed: int
    crop: tuple[float, float, float]  # size and place, top and left, of a random crop to speak of, each in [0, 1)


Row = RowDraw | TextRowDraw


@dataclass(frozen=True)
class StepDraw:
    """The rows of one optimizer step, of all processes together, all of one latent shape."""

    prompt: int  # index of the prompt set
    resolution: int  # px
    rows: tuple[Row, ...]


def resolutions(prompts: PromptSet) -> tuple[int, ...]:
    """Sizes in px that a prompt set trains at: its `resolution`, with `dynamic_resolution` also down to half of it."""
    if not prompts.dynamic_resolution:
        return (prompts.resolution,)
    return tuple(range(prompts.resolution, prompts.resolution // 2 - 1, -RESOLUTION_STEP))


def _begin(seed: int, step: int, prompts: Sequence[PromptSet]) -> tuple[random.Random, int, int]:
    """The generator of a step's draws, the index of its prompt set, and its resolution in px."""
    rng = random.Random(f"{seed}/{step}/0")
    prompt = rng.randrange(len(prompts))
    return rng, prompt, rng.choice(resolutions(prompts[prompt]))


@dataclass(frozen=True)
class Draws:
    """`draws(step)` returns the `StepDraw` of a step.

    `shape_of(image, resolution)` is the shape of an image's latents; the images of one step must agree in it to form a
    batch. Prompt set, resolution, image and scale are drawn uniformly, the timestep from `timesteps`. Rows alternate
    between the lower and the higher of two different scales, which decides the prompt they are read with. Each has its
    own image, noise and timestep, because rows that share them were measured to teach less; with `scales_per_step` above
    1, groups of so many rows share them and differ in the scale alone.

    No row is at scale 0: every algorithm multiplies what it adds by the scale, and every loss of
    images looks at each row alone, so such a row has no gradient. Where it is drawn, the other of the two takes its place.
    """

    seed: int
    prompts: Sequence[PromptSet]
    num_images: int
    scales: tuple[float, ...]  # of each folder
    timesteps: TimestepDistribution
    shape_of: Callable[[int, int], Hashable]
    caption_dropout: float = 0.0
    scales_per_step: int = 1
    processes: int = 1  # each trains on `batch_size` pairs

    def __call__(self, step: int) -> StepDraw:
        rng, prompt, resolution = _begin(self.seed, step, self.prompts)
        chosen = self.prompts[prompt]
        first = rng.randrange(self.num_images)
        shape = self.shape_of(first, resolution)
        alike = [i for i in range(self.num_images) if self.shape_of(i, resolution) == shape]
        images = [first] + [rng.choice(alike) for _ in range(ROWS_PER_PAIR * chosen.batch_size * self.processes - 1)]
        rows = tuple(self._row(rng, image, positive=bool(i % 2)) for i, image in enumerate(images))
        together = min(self.scales_per_step, len(self._trained))
        if together > 1:
            groups = [rows[i : i + together] for i in range(0, len(rows), together)]
            rows = tuple(row for group in groups for row in self._alike(rng, group))
        return StepDraw(prompt, resolution, rows)

    @property
    def _trained(self) -> list[int]:
        """Indices of the folders."""
        return [folder for folder, scale in enumerate(self.scales) if scale]

    def _alike(self, rng: random.Random, group: tuple[RowDraw, ...]) -> list[RowDraw]:
        """The first row of the group at as many different scales as the group has rows, ascending."""
        folders = sorted(rng.sample(self._trained, len(group)))
        return [
            replace(group[0], folder=f, scale=self.scales[f], positive=2 * i >= len(group))
            for i, f in enumerate(folders)
        ]

    def _row(self, rng: random.Random, image: int, positive: bool) -> RowDraw:
        low, high = sorted(rng.sample(range(len(self.scales)), 2))
        if self.scales[high if positive else low] == 0:
            positive = not positive
        folder = high if positive else low
        return RowDraw(
            image=image,
            folder=folder,
            scale=self.scales[folder],
            positive=positive,
            captioned=rng.random() >= self.caption_dropout,
            timestep=self.timesteps.draw(rng.random()),
            noise_seed=rng.getrandbits(63),
            crop=(rng.random(), rng.random()),
        )


@dataclass(frozen=True)
class TextDraws:
    """`draws(step)` returns the `StepDraw` of a step without images.

    Rows alternate between the lower and the upper half of the range of multipliers, within which they are drawn
    uniformly, so that a range around 0 trains both signs in every step. The cleanest row, whose latents take longest to
    make, comes first.
    """

    seed: int
    prompts: Sequence[PromptSet]
    scales: tuple[float, ...]  # the range reaches from the first to the last
    timesteps: TimestepDistribution
    processes: int = 1  # each trains on `batch_size` pairs

    def __call__(self, step: int) -> StepDraw:
        rng, prompt, resolution = _begin(self.seed, step, self.prompts)
        chosen = self.prompts[prompt]
        rows = [self._row(rng, upper=i % 2) for i in range(ROWS_PER_PAIR * chosen.batch_size * self.processes)]
        return StepDraw(prompt, resolution, tuple(sorted(rows, key=lambda row: row.timestep)))

    def _row(self, rng: random.Random, upper: int) -> TextRowDraw:
        low, high = self.scales[0], self.scales[-1]
        return TextRowDraw(
            scale=low + (high - low) * (upper + rng.random()) / 2,
            timestep=self.timesteps.draw(rng.random()),
            noise_seed=rng.getrandbits(63),
            crop=(rng.random(), rng.random(), rng.random()),
        )
