"""Adaptors: one algorithm per file. `network.algo` is looked up in `ALGORITHMS`."""

from sliders.adaptors.lora import LoRA

ALGORITHMS = {"lora": LoRA}
