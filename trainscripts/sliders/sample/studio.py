"""A loaded model that makes the pictures of one slider after another, and measures them."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sliders.compute.device import DTYPES, place
from sliders.config.schema import SAMPLERS
from sliders.fast.path import FastPath, fuse_vae
from sliders.formats.lora_files import read_lora
from sliders.report.card import Card
from sliders.report.yardstick import Yardstick
from sliders.sample.plan import SamplePlan
from sliders.sample.rungs import Scene
from sliders.sample.sampling import Row, sample
from sliders.sample.settings import SampleSettings
from sliders.sample.templates import Group, Variant
from sliders.system.progress import now


class Studio:
    """Loads the model that the settings name, and encodes the prompts of all plans."""

    def __init__(self, settings: SampleSettings, plans: Sequence[SamplePlan]):
        self._settings = settings
        plan = plans[0]
        device = plan.device
        precision = settings.precision or (plan.family.facts.half if device.startswith("cuda") else "float32")
        now("loading the model")
        model = self.model = plan.family.load(settings.model, DTYPES[precision])
        model.check_sampling("--model", None if settings.sampler else f"add --sampler, such as {next(iter(SAMPLERS))}")
        groups = [group for plan in plans for group in plan.groups]
        texts = dict.fromkeys(text for g in groups for text in (g.text, *(v.text for v in g.variants)))
        self._embeds = model.encode_prompts([settings.negative, "", *texts], device)
        model.free_text_encoders()
        place(model.denoiser, device, model.dtype)
        if device.startswith("cuda"):
            model.denoiser.to(memory_format=torch.channels_last)
        model.vae.to(device)
        fuse_vae(model.vae, device)
        self._yardsticks: dict[tuple, Yardstick] = {}

    def pictures(self, plan: SamplePlan) -> Iterator[tuple[Group | Scene, Tensor]]:
        """Yields each group with its pictures [seeds, variants, 3, H, W]. Batches run across groups and seeds."""
        model, seeds = self.model, self._settings.seeds
        files = (read_lora(path, plan.weightless, plan.family) for path in plan.sliders.values())
        networks = [file.attach(model.denoiser) for file in files]
        negative = model.negative(self._settings.negative, self._embeds)
        rows = [row for group in plan.groups for row in self._rows(plan, group)]
        with (
            FastPath(model.denoiser, networks),
            closing(sample(model, networks, rows, negative, plan.sampling)) as made,
        ):
            bar = iter(tqdm(made, "sampling", total=len(rows), unit="img"))
            for group in plan.groups:
                count = len(seeds) * len(group.variants)
                yield group, torch.stack([next(bar) for _ in range(count)]).unflatten(0, (len(seeds), -1))
        for network in reversed(networks):
            network.remove()

    def _rows(self, plan: SamplePlan, group: Group | Scene) -> list[Row]:
        def row(variant: Variant, seed: int) -> Row:
            before = self._embeds[group.text] if variant.text != group.text else None
            multipliers = tuple(variant.multiplier(name) for name in plan.sliders)
            return Row(self._embeds[variant.text], seed, multipliers, before)

        return [row(variant, seed) for seed in self._settings.seeds for variant in group.variants]

    def card(self, plan: SamplePlan, sweeps: Sequence[Sequence[Image.Image]]) -> Card:
        """Measures the sweeps of all groups by the plan's folders. Not while `pictures` is being read."""
        folders = plan.measured_by
        key = (folders.folders, folders.scales)
        texts = [group.text for group in plan.groups for _ in self._settings.seeds]
        with FastPath(self.model.denoiser):
            if key not in self._yardsticks:
                size = (plan.sampling.width, plan.sampling.height)
                self._yardsticks[key] = Yardstick(self.model, folders, size, self._embeds[""])
            multipliers = plan.groups[0].multipliers
            return self._yardsticks[key].measure(sweeps, multipliers, [texts.index(text) for text in texts])
