"""The modules of diffusers' ZImageTransformer2DModel."""

from torch import Tensor

from sliders.models.architecture import Architecture
from sliders.models.zimage.transformer import PATCH

LAYERS = "layers."
REFINERS = ("noise_refiner.", "context_refiner.")  # before the layers, they read image and prompt alone

MIXED = "image and prompt are read by the same attention layers"
NO_MIDDLE = "its blocks have no bottleneck, in whose middle h-space is"


def _image_of(output: Tensor, size: tuple[int, int]) -> Tensor:
    """A block returns the tokens of both, those of the image first."""
    height, width = (side // PATCH for side in size)
    return output[:, : height * width].mT.unflatten(2, (height, width))


ZIMAGE = Architecture(
    adapted={"lierla": ("Attention",), "c3lier": ("Attention", "FeedForward")},
    methods={"full": lambda block, layer: block.startswith(LAYERS)},
    inside=(LAYERS, *REFINERS),
    compiled=("ZImageTransformerBlock",),
    quantized=f".{LAYERS}",  # refiners, embedders and the output stay in high precision
    blocks=lambda transformer: [*transformer.layers[::3]],
    image_of=_image_of,
    refused={
        **dict.fromkeys(("noxattn", "innoxattn", "selfattn", "xattn", "xattn-strict"), MIXED),
        **dict.fromkeys(("noxattn-hspace", "noxattn-hspace-last"), NO_MIDDLE),
    },
)
