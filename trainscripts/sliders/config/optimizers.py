"""The table of optimizers that `train.optimizer` may name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerEntry:
    """Where an optimizer comes from and what it needs."""

    module: str
    cls: str
    state_bytes: int  # that it keeps for each weight
    extra: str = ""  # of pyproject.toml, which brings the module
    fused: bool = False  # takes `fused=True`: one kernel for all tensors
    finds_lr: bool = False  # lr is a factor on the step size that it estimates


OPTIMIZERS = {
    "adam": OptimizerEntry("torch.optim", "Adam", 8, fused=True),
    "adamw": OptimizerEntry("torch.optim", "AdamW", 8, fused=True),
    "lion": OptimizerEntry("lion_pytorch", "Lion", 4, "optimizers"),
    "prodigy": OptimizerEntry("prodigyopt", "Prodigy", 16, "optimizers", finds_lr=True),
    "dadaptadam": OptimizerEntry("dadaptation", "DAdaptAdam", 12, "optimizers", finds_lr=True),
    "dadaptlion": OptimizerEntry("dadaptation", "DAdaptLion", 8, "optimizers", finds_lr=True),
    "adam8bit": OptimizerEntry("bitsandbytes.optim", "Adam8bit", 2),
    "adamw8bit": OptimizerEntry("bitsandbytes.optim", "AdamW8bit", 2),
    "lion8bit": OptimizerEntry("bitsandbytes.optim", "Lion8bit", 1),
}
