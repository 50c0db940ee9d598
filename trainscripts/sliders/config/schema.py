"""What may stand in a config or prompts YAML: every key with its type, default and meaning.

Each key either works or is refused here with a sentence; none is read and ignored. The keys and defaults are the
fork's; what this project adds is marked (ours).
"""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from sliders.config.families import DEFAULT_FAMILY
from sliders.config.fields import (
    Arguments,
    Folder,
    Number,
    Place,
    SavePrecision,
    Section,
    TrainPrecision,
    Whole,
    one_or_more,
)
from sliders.config.migration import minus_one_is_none, spelled, switch, translated
from sliders.config.optimizers import OPTIMIZERS
from sliders.config.prompts import Prompt, PromptSet

NAME_LIMIT = 120  # bytes; leaves room for `_alpha…_rank…_method_…steps.safetensors.tmp` in a 255-byte file name
# in Windows, in any letter case and with any ending after the first dot; the digits may also be superscripts
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
UNSAFE_IN_NAMES = '<>:"/\\|?*'  # A1111 ends a `<lora:…>` at `:` or `>`; Windows refuses the rest
TRAINING_METHODS = (
    "full", "noxattn", "innoxattn", "selfattn", "xattn", "xattn-strict", "noxattn-hspace", "noxattn-hspace-last",
)  # fmt: skip
DPM = "DPMSolverMultistepScheduler"
DPM_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False}
SAMPLERS = {  # name → class in diffusers, the options that make it what the name promises, name in A1111
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, "DDIM"),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": False}, "Euler"),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, "Euler a"),
    "dpm++_2m": (DPM, DPM_2M, "DPM++ 2M"),
    "dpm++_2m_karras": (DPM, {**DPM_2M, "use_karras_sigmas": True}, "DPM++ 2M Karras"),
    "dpm++_2m_sde": (DPM, {**DPM_2M, "algorithm_type": "sde-dpmsolver++"}, "DPM++ 2M SDE"),
    "unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}, "UniPC"),
}


LR_SCHEDULERS = ("constant", "cosine", "cosine_with_restarts", "step", "linear")
ATTENTION = ("auto", "sdpa", "cudnn", "flash", "efficient", "math", "xformers", "flash-attn")
Automatic = Annotated[Literal["auto", "off"], switch("auto")]
AtLeast0, AtLeast1 = Annotated[Whole, Field(ge=0)], Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]


class MergedLoRA(Section):
    """(ours) A LoRA that becomes part of the frozen model, times `weight`."""

    file: Folder
    weight: Number = 1.0


class PretrainedModel(Section):
    name_or_path: Place  # hub id, diffusers folder, .safetensors, .ckpt, or `tiny`
    config: Place | None = None  # (ours) folder with a single file's JSON and tokenizer files; none: asks the hub
    quantize: Annotated[Literal["none", "fp8", "int8", "nf4"], switch("fp8", "none")] = "none"  # (ours) UNet's weights
    v2: bool = False
    v_pred: bool | None = None  # none: what the checkpoint says
    clip_skip: Annotated[Whole, Field(ge=0, le=10)] | None = None  # text-encoder layers skipped before the usual one
    loras: Annotated[tuple[MergedLoRA, ...], one_or_more] = ()  # (ours) what the slider is trained on top of


class LayerPattern(Section):
    """(ours) Layers to adapt besides those that type and training_method select, or with another rank or alpha."""

    pattern: Annotated[str, Field(min_length=1)]
    rank: Annotated[Whole, Field(ge=1, le=4096)] | None = None  # none: the network's
    alpha: Annotated[Number, Field(gt=0)] | None = None  # none: what keeps the network's alpha / rank

    @model_validator(mode="before")
    @classmethod
    def _a_string_is_a_pattern(cls, value: Any) -> Any:
        return {"pattern": value} if isinstance(value, str) else value


class Network(Section):
    type: Literal["lierla", "c3lier"] = "lierla"  # which layers
    algo: Annotated[str, spelled({})] = "lora"  # (ours) which mathematics: a name in adaptors.ALGORITHMS
    factor: Annotated[Annotated[Whole, Field(ge=2)] | None, minus_one_is_none] = None  # (ours) of lokr; none: squarest
    rank: Annotated[Whole, Field(ge=1, le=4096)] = 4
    alpha: Annotated[Number, Field(gt=0)] = 1.0
    training_method: Literal[TRAINING_METHODS] = "full"
    include: Annotated[tuple[LayerPattern, ...], one_or_more] = ()  # (ours) see models/layers.py
    exclude: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], one_or_more] = ()  # (ours)

    @model_validator(mode="after")
    def _factor_has_an_effect(self) -> "Network":
        if self.factor is not None and self.algo != "lokr":
            raise ValueError(f"factor is for algo lokr, and this is {self.algo}: remove it")
        return self

    @property
    def ranks(self) -> set[tuple[int, float]]:
        """(rank, alpha) that layers may have."""
        own = {self.rank_and_alpha(item) for item in self.include if item.rank or item.alpha}
        return {(self.rank, self.alpha), *own}

    def rank_and_alpha(self, item: LayerPattern) -> tuple[int, float]:
        """Of the layers that `item` includes. A rank without an alpha keeps the gain, alpha / rank."""
        rank = item.rank or self.rank
        return rank, item.alpha or self.alpha * rank / self.rank


class Train(Section):
    precision: TrainPrecision = "bfloat16"
    noise_scheduler: Literal["ddim", "ddpm", "lms", "euler_a"] = "ddim"  # no choice: see the guide
    iterations: Annotated[Whole, Field(ge=1, le=10**9)] = 500
    lr: Annotated[Number, Field(gt=0)] = 1e-4
    optimizer: Annotated[Literal[tuple(OPTIMIZERS)], spelled({})] = "adamw"
    optimizer_args: Arguments = ""
    lr_scheduler: Annotated[Literal[LR_SCHEDULERS], spelled({})] = "constant"
    max_denoising_steps: Annotated[Whole, Field(ge=2, le=1000)] = 50
    loss: str = "reference"  # (ours) a name in train.losses.LOSSES
    timestep_bias: Annotated[Number, Field(ge=0, le=20)] | Literal["auto"] = Field(  # (ours) see data/timesteps.py
        2.0, examples=["a number from 0 to 20", "auto"]
    )
    timestep_shift: Annotated[Number, Field(gt=0, le=100)] | None = (
        None  # (ours) instead: logit-normal, with this shift
    )
    min_timestep: Annotated[Whole, Field(ge=0, le=999)] = 0  # (ours) 0: the image, 999: noise
    max_timestep: Annotated[Whole, Field(ge=0, le=999)] = 999  # (ours)
    min_snr_gamma: Annotated[Number, Field(ge=0)] = 0.0  # (ours) 0: every timestep's error counts alike
    caption_dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0  # (ours) share of rows read with an empty prompt
    scales_per_step: AtLeast1 = 1  # (ours) rows that share image, noise and timestep
    max_grad_norm: Annotated[Number, Field(ge=0)] = 0.0  # (ours) 0: gradients are not clipped
    skip_nonfinite: AtLeast0 = 0  # (ours) bad steps in a row that are left out, not stopped at
    seed: Seed = 0  # (ours)

    @model_validator(mode="after")
    def _one_distribution(self) -> "Train":
        if self.timestep_shift is not None and "timestep_bias" in self.model_fields_set:
            raise ValueError("timestep_shift replaces timestep_bias, and both are given: remove one")
        return self


class Save(Section):
    name: str = "untitled"
    path: Folder = Path("./output")
    per_steps: AtLeast1 = 200
    precision: SavePrecision = "float32"
    sidecars: bool = True  # (ours) beside each slider the card that web UIs show; pictures come with preview.prompts
    keep: AtLeast1 = 2  # (ours) resumable states, the newest; sliders are all kept

    @field_validator("name")
    @classmethod
    def _is_a_file_name(cls, name: str) -> str:
        bad = sorted({c for c in name if c in UNSAFE_IN_NAMES or not c.isprintable()})
        if bad:
            shown = " ".join(c if c.isprintable() else repr(c) for c in bad)
            raise ValueError(f"{name!r} holds {shown}, which a file name or a web UI's prompt cannot: leave them out")
        if not name or name != name.strip() or name.startswith(".") or name.endswith("."):
            raise ValueError(f"{name!r} must not be empty or start or end with a space or a dot")
        if RESERVED.fullmatch(name):
            raise ValueError(
                f"{name!r} begins with the name of a device in Windows, which no file can have: choose another"
            )
        if len(name.encode()) > NAME_LIMIT:
            raise ValueError(
                f"is {len(name.encode())} bytes long; {NAME_LIMIT} is the most a file name leaves room for"
            )
        return name


class Preview(Section):
    """(ours) The labelled picture written next to each slider: prompts in rows, multipliers in columns."""

    prompts: tuple[Prompt, ...] = ()  # none: no picture
    multipliers: tuple[Number, ...] | None = None  # none: 0, the scales, and one step beyond the highest
    seed: Seed = 0  # of the first row; each row has the next one
    seeds: Annotated[Whole, Field(ge=1, le=64)] = 1  # rows of each prompt on the page at the end; the picture shows one
    steps: Annotated[Whole, Field(ge=1, le=1000)] | None = None  # none: the model's usual number, of SDXL and SD 30
    guidance: Annotated[Number, Field(gt=0)] | None = (
        None  # none: the first prompt set's guidance_scale, or the model's
    )
    every: AtLeast0 = 0  # also every so many training steps; 0: only next to sliders

    @model_validator(mode="after")
    def _shows_something(self) -> "Preview":
        if self.every and not self.prompts:
            raise ValueError(f"every is {self.every}, but there are no prompts to show: add prompts, or remove it")
        return self


class Logging(Section):
    log_every: AtLeast1 = 10  # (ours) steps; each reading of the loss makes a GPU wait
    use_wandb: bool = False
    verbose: bool = False


class Other(Section):
    attention: Literal[ATTENTION] = "auto"  # (ours)
    use_xformers: bool = False  # see migration.OLD_KEYS
    use_pytorch_SDPA: bool = True  # noqa: N815 - the fork's spelling; see migration.OLD_KEYS
    cuda_graph: Automatic = "auto"  # (ours)
    fast_path: Automatic = "auto"  # (ours)
    torch_compile: Annotated[Literal["off", "regional", "full"], switch("regional")] = "off"
    lycorisize: bool = False  # see migration.OLD_KEYS
    gradient_checkpointing: bool = False
    torch_amp: bool = False

    @property
    def takes_fast_path(self) -> bool:
        """Compiled code has no use for it: the compiler cannot look into it. Autocast could not cast the products in it."""
        return self.fast_path == "auto" and self.torch_compile == "off" and not self.torch_amp


class Config(Section):
    """The file given as `--config_file`."""

    prompts_file: Place | None = None  # none: each image is trained with its caption alone
    pretrained_model: PretrainedModel
    network: Network = Network()
    train: Train = Train()
    save: Save = Save()
    preview: Preview = Preview()
    logging: Logging = Logging()
    other: Other = Other()

    @model_validator(mode="before")
    @classmethod
    def _empty_section_is_default(cls, data: Any) -> Any:
        """`logging:` with nothing under it is YAML for null; a user means the defaults."""
        if not isinstance(data, dict):
            return data
        optional = cls.model_fields.keys() - {"pretrained_model"}
        return {key: value for key, value in data.items() if value is not None or key not in optional}

    @model_validator(mode="after")
    def _old_keys_are_said_as_today(self) -> "Config":
        return translated(self)


Incomplete = Literal["refuse", "drop"]


class Data(Section):
    """Where the images lie and what multiplier each folder stands for; both tuples are in ascending order of scale."""

    kind: ClassVar[str] = "images"
    folder_main: Path
    folders: tuple[str, ...]
    scales: tuple[float, ...]
    leave_out: Path | None = None  # a file with the names of images to do without
    incomplete: Incomplete = "refuse"  # what becomes of names that some folders lack

    @property
    def trained_at(self) -> str:
        """The multipliers, in words."""
        return ", ".join(f"{folder} = {scale:g}" for folder, scale in zip(self.folders, self.scales, strict=True))


class TextData(Section):
    """No images: the prompts say what is learnt, at any multiplier between the first and the last of `scales`."""

    kind: ClassVar[str] = "text"
    scales: tuple[float, ...]  # ascending, at least two

    @property
    def trained_at(self) -> str:
        return f"all multipliers from {self.scales[0]:g} to {self.scales[-1]:g}"


class Settings(Config):
    """Everything that defines one run: the config with the flags laid over it, the prompts, and the data."""

    config_file: Path
    family: str = DEFAULT_FAMILY  # a name in models.FAMILIES, chosen by the command
    prompts: tuple[PromptSet, ...]
    data: Data | TextData
    device: str  # "cpu", "mps" or a CUDA index
    overwrite: bool = False
    resume: bool = False
    notes: tuple[str, ...] = ()  # on what was assumed, for the plan

    @property
    def stem(self) -> str:
        """Name of the run's folder, and the start of every file in it."""
        n = self.network
        return f"{self.save.name}_alpha{n.alpha}_rank{n.rank}_{n.training_method}"

    @property
    def run_dir(self) -> Path:
        return self.save.path / self.stem
