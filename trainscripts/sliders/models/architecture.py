"""What the rooms that adapt, compress, compile and look into a denoiser know of its modules."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """The modules of a class of denoisers. Paths are those of `named_modules`."""

    # {network.type: classes of the modules whose Linear and Conv2d layers are adapted}
    adapted: dict[str, tuple[str, ...]]
    # {training_method: rule(path of such a module, path of the layer in it) → whether the layer is adapted}
    methods: dict[str, Callable[[str, str], bool]]
    inside: tuple[str, ...]  # beginnings of the paths of layers that patterns may name, whose names web UIs know
    compiled: tuple[str, ...]  # classes of the modules that other.torch_compile: regional compiles
    quantized: str  # part of the paths of the linear layers that pretrained_model.quantize stores in fewer bits
    blocks: Callable[
        [nn.Module], list[nn.Module]
    ]  # in their order; by their outputs the report card tells pictures apart
    # a block's output, (h, w) of the latents → what it says of the image, [B, C, h', w']
    image_of: Callable[[Tensor | tuple[Tensor, ...], tuple[int, int]], Tensor]
    # {training_method that these modules do not offer: why}
    refused: dict[str, str] = field(default_factory=dict)
