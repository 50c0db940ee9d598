"""Adaptors, one algorithm per file. `ALGORITHMS` maps `network.algo` to them."""

from sliders.adaptors.lora import LoRA

ALGORITHMS = {"lora": LoRA}
