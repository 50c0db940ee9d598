"""GPU memory that a training step needs, as arithmetic on the settings. Imports no torch. Sizes are in bytes, unless they say GiB.

Weights, adaptors and optimizer state follow from their numbers and dtypes. What a step keeps for its backward pass was measured
(`ACTIVATIONS`). `bench_memory.py` compares all of this with the peak of real steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from sliders.config.optimizers import OPTIMIZERS

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a number
QUANTIZED = {
    "int8": 1,
    "fp8": 1,
    "nf4": 0.516,
}  # of a weight; nf4 adds 8 bits for each 64 weights, and 4 bytes for 256 of those
MASTER = 8  # float32 weight and gradient
EIGHT_BIT = {"adam": "adam8bit", "adamw": "adamw8bit", "lion": "lion8bit"}
UNUSABLE = 1.04  # PyTorch reserves whole blocks, of which a small part stays unused
FULL = 0.95  # of a GPU's memory: about here Windows begins to move memory to the computer's

# {(family, fused, checkpointed): (GiB at any size, GiB for each 2^20 px of all rows)} in 16 bits, fitted to the peaks of steps at
# 512 and 1024 px on an H200; the unfused, checkpointed one of SDXL is an estimate.
ACTIVATIONS = {
    ("sdxl", True, False): (0.51, 4.13),
    ("sdxl", True, True): (0.38, 0.47),
    ("sdxl", False, False): (0.61, 5.33),
    ("sdxl", False, True): (0.45, 0.60),
    ("zimage", True, False): (0.96, 18.8),
}
TEXT_ENCODERS = {"sdxl": 0.82e9, "sd": 0.34e9}  # weights; those of flow models go through the GPU in parts if they must
VAE = (0.31, 2.5)  # GiB of its weights, and for each 2^20 px of an image in float32: estimates


@dataclass(frozen=True)
class Frozen:
    """Numbers of a denoiser's weights: of those that are never quantised, of those that can be, and of their layers' outputs."""

    plain: int
    quantizable: int
    outputs: int

    def bytes(self, precision: str, quantize: str) -> float:
        """precision and quantize: as in the config."""
        each = BYTES[precision]
        if quantize == "none":
            return (self.plain + self.quantizable) * each
        steps = self.outputs * each if quantize != "nf4" else 0
        return self.plain * each + self.quantizable * QUANTIZED[quantize] + steps


SDXL = Frozen(359_719_684, 2_207_744_000, 1_436_160)
SDXL_PARAMETERS = 103_680_000  # of c3lier noxattn rank 96


@dataclass(frozen=True)
class Demand:
    """What decides how much memory a run needs."""

    family: str
    frozen: Frozen
    parameters: int  # of the adaptors
    pixels: int  # of all rows of the largest step
    picture: int  # pixels of the largest image that is encoded; 0: none is
    precision: str = "bfloat16"
    quantize: str = "none"
    checkpointing: bool = False
    optimizer: str = "adamw"
    fused: bool = True  # whether the fast path's kernels run

    @property
    def weights(self) -> float:
        """Of the frozen denoiser."""
        return self.frozen.bytes(self.precision, self.quantize)

    @property
    def adaptors(self) -> float:
        """With gradients, optimizer state, and the copy that is computed with."""
        copy = BYTES[self.precision] if self.precision != "float32" else 0
        return self.parameters * (MASTER + copy + OPTIMIZERS[self.optimizer].state_bytes)

    @property
    def activations(self) -> float | None:
        """What a step keeps for its backward pass, and works with. None where it was not measured."""
        if (fit := ACTIVATIONS.get((self.family, self.fused, self.checkpointing))) is None:
            return None
        constant, slope = fit
        return (constant + slope * self.pixels / 2**20) * GIB * BYTES[self.precision] / 2

    @property
    def training(self) -> float:
        """The peak of the steps; without activations where these were not measured."""
        return self.weights + self.adaptors + (self.activations or 0)

    @property
    def encoding(self) -> float:
        """The peak before the first step, when text encoders and VAE are on the GPU one after the other, and nothing else."""
        constant, slope = VAE
        vae = (constant + slope * self.picture / 2**20) * GIB if self.picture else 0
        return max(TEXT_ENCODERS.get(self.family, 0) * BYTES[self.precision], vae)

    @property
    def peak(self) -> float:
        return max(self.training, self.encoding)

    def fits(self, free: int) -> bool:
        return self.peak * UNUSABLE <= free

    def changes(self, since: "Demand") -> dict[str, str]:
        """{key of the config: value} in which the two differ."""
        keys = {
            "train.precision": (self.precision, since.precision),
            "train.optimizer": (self.optimizer, since.optimizer),
            "other.gradient_checkpointing": (str(self.checkpointing).lower(), str(since.checkpointing).lower()),
            "pretrained_model.quantize": (self.quantize, since.quantize),
        }
        return {key: new for key, (new, old) in keys.items() if new != old}

    def lighter(self) -> Iterator["Demand"]:
        """The same run with less memory, in all ways that were measured, those first that cost the least time and accuracy."""
        kinds = dict.fromkeys((self.quantize, "int8", "nf4") if self.quantize == "none" else (self.quantize, "nf4"))
        for kind, checkpointing, eight_bit in product(kinds, dict.fromkeys((self.checkpointing, True)), (False, True)):
            optimizer = EIGHT_BIT.get(self.optimizer, self.optimizer) if eight_bit else self.optimizer
            found = replace(self, quantize=kind, checkpointing=checkpointing, optimizer=optimizer)
            measured = (found.activations is None) == (self.activations is None)
            if measured and found.peak < self.peak:
                yield found

    def fitting(self, free: int) -> "Demand | None":
        """The first of the lighter ones that needs no more than `free`."""
        return next((found for found in self.lighter() if found.fits(free)), None)


def describe_need(demand: Demand, card: tuple[int, int] | None) -> str:
    """The plan's line. card: (free, total) bytes of the GPU, or None without one."""
    parts = f"{gib(demand.weights)} for the model, {gib(demand.adaptors)} for adaptors and {demand.optimizer}"
    if demand.activations is None:
        need = f"more than {gib(demand.training)} GiB on the GPU: {parts}, and what a step works with, which was not measured"
    else:
        need = f"about {gib(demand.training)} GiB on the GPU: {parts}, {gib(demand.activations)} for a step"
    before = f"; {gib(demand.encoding)} before, to encode" if demand.encoding > demand.training else ""
    have = "" if card is None else f"; {gib(card[0])} of {gib(card[1])} are free"
    return need + before + have


def advise(demand: Demand, card: tuple[int, int] | None, smaller: Sequence[str] = ()) -> str | None:
    """A sentence if the run does not fit the card: what brings it below what is free. smaller: remedies besides those."""
    if card is None or demand.fits(card[0]):
        return None
    lacking = f"{gib(demand.peak)} GiB of GPU memory are needed, and {gib(card[0])} are free"
    if (found := demand.fitting(card[0])) is not None:
        return f"{lacking}: {_settings(found.changes(demand))} brings it to {gib(found.peak)}."
    least = min((demand, *demand.lighter()), key=lambda d: d.peak)
    even = f", even with {_settings(least.changes(demand))} {gib(least.peak)}" if least != demand else ""
    others = "".join(f", set {remedy}" for remedy in smaller[:1])
    return f"{lacking}{even}: close other programs that use the GPU{others}, or use a larger card."


def _settings(changes: dict[str, str]) -> str:
    return " with ".join(f"{key}: {value}" for key, value in changes.items())


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"
