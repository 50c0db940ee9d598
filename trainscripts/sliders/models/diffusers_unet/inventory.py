"""Whether a file holds a weight for every parameter. Every key is used, known to be harmless, or refused by name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sliders.models.diffusers_unet.keys import Origin
from sliders.models.folders import Weights
from sliders.models.places import PARTS
from sliders.system.errors import InputError
from sliders.system.weight_files import Stored

Shapes = Mapping[str, tuple[int, ...]]  # of parameters
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BYTES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)  # may have a scale
SCALES = ("scale_weight", "weight_scale")  # instead of `weight`; ComfyUI's names, old and new
PLAIN = "choose a file with weights of 16 or 32 bits"
QUANTIZATIONS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")  # weight · scale
KNOWN = re.compile(  # of no use here
    r"model_ema\..*|.*\.position_ids|(.*\.)?logit_scale|.*\.attn_mask|v_pred|ztsnr|global_step|"
    r"betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recip(m1)?_alphas_cumprod|posterior_\w+|lvlb_weights|logvar|"
    r"(denoiser|model_sampling)\.(log_)?sigmas|scale_factor|first_stage_model\.(loss|model_ema)\..*|embedding_manager\..*|"
    r".*\.(vision_model|visual|visual_projection)\..*|"  # CLIP's other half
    r"(cond_stage_model|conditioner\.embedders\.0)\.((transformer|model)\.)?text_projection(\.weight)?|"
    # the layer of OpenCLIP that Stable Diffusion 2 does not use
    r"cond_stage_model\.(model\.transformer\.resblocks|transformer\.text_model\.encoder\.layers)\.23\..*|"
    r".*\.(scale_input|input_scale)"  # for products in float8, which are not computed here
)
QUANTIZATION_MARK = re.compile(r"(.*\.)?scaled_fp8|.*\.comfy_quant")
FOREIGN = (  # part of a key: what it belongs to
    (r"^(lora|lycoris)_|\.lora_|\.(hada|lokr)_|\.processor\.", "a LoRA, which is not merged into the weights"),
    (r"^control_model\.|input_hint_block|controlnet", "a ControlNet"),
    (r"\.(\w*absmax|\w*quant_map|quant_state|qweight|qzeros|wscales|weight_packed|weight_scale_2|weight_format)(\.|$)|bitsandbytes",
     "quantised weights of a kind that is not supported"),
    (r"motion_modules?\.|temporal_transformer", "the motion modules of a video model"),
    (r"ip_adapter|image_proj|to_[kv]_ip", "an IP-Adapter"),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Where a parameter is in the files. origin.key: as the files spell it. scale: the key of its weight's factor."""

    origin: Origin
    scale: str | None = None


def find_parameters(
    part: str, shapes: Shapes, origins: Mapping[str, Origin], keys: Mapping[str, str], weights: Weights, place: str
) -> dict[str, Found]:
    """Raises InputError if the part is missing or incomplete, if a shape differs, or if a dtype cannot be read."""
    title, missing = PARTS[part], [origin.key for origin in origins.values() if origin.key not in keys]
    if len(missing) == len(origins):
        raise InputError(
            f"{place} contains no {title} ({missing[0].rpartition('.')[0]} and the like): choose a complete model, with "
            "UNet, VAE and text encoders in it."
        )
    if missing:
        raise InputError(
            f"{place} lacks {len(missing)} weight(s) of its {title}, such as {missing[0]}: choose a complete model."
        )
    found = {}
    for parameter, shape in shapes.items():
        origin, key = origins[parameter], keys[origins[parameter].key]
        stored = weights.stored[key]
        if not _fits(stored.shape, shape, origin):
            raise InputError(
                f"{place}: {key}, of its {title}, has the shape {list(stored.shape)}, which does not fit {list(shape)}: choose a model "
                "of usual sizes, or for a single file the folder with its JSON files as pretrained_model.config."
            )
        scale = _scale_of(key, weights.stored)
        _check_dtype(key, stored, scale, weights, place)
        found[parameter] = Found(replace(origin, key=key), scale)
    return found


def _fits(stored: tuple[int, ...], wanted: tuple[int, ...], origin: Origin) -> bool:
    if origin.third is not None:
        stored = (stored[0] // 3, *stored[1:]) if stored and stored[0] % 3 == 0 else ()
    if origin.transposed:
        return stored in (wanted, wanted[::-1])
    return _squeezed(stored) == _squeezed(wanted)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without sizes of 1 at the end: a linear layer is also written as a convolution of 1 × 1."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _scale_of(key: str, stored: Mapping[str, Stored]) -> str | None:
    if not key.endswith(".weight"):
        return None
    return next((name for scale in SCALES if (name := key.removesuffix("weight") + scale) in stored), None)


def _check_dtype(key: str, stored: Stored, scale: str | None, weights: Weights, place: str) -> None:
    known = (*FLOATS, *BYTES) if scale else (*FLOATS, *BYTES[:2])
    name = str(stored.dtype).removeprefix("torch.")
    if stored.dtype not in known:
        raise InputError(
            f"{place}: {key} is stored as {name}, quantised weights of a kind that is not supported: {PLAIN}."
        )
    if scale is None:
        return
    shape, rows = weights.stored[scale].shape, stored.shape[0] if stored.shape else 1
    whole = _squeezed((*shape, 1, 1))[:2]
    if weights.stored[scale].dtype not in FLOATS or whole not in ((1, 1), (rows, 1)):
        raise InputError(f"{place}: {scale}, of shape {list(shape)}, is not one factor, or one per output: {PLAIN}.")
    if stored.dtype not in BYTES and scale.endswith(SCALES[1]):
        raise InputError(f"{place}: {scale} belongs to a weight of 8 bits, but {key} is stored as {name}: {PLAIN}.")


def check_foreign(weights: Weights, place: str) -> None:
    """Raises InputError for keys that are known to belong to something else than a model's plain weights."""
    for pattern, what in FOREIGN:
        if found := [key for key in weights.stored if re.search(pattern, key)]:
            raise InputError(
                f"{place} contains {len(found)} key(s) of {what}, such as {found[0]}: choose a complete model of plain weights."
            )


def check_rest(used: set[str], keys: Mapping[str, str], weights: Weights, place: str) -> None:
    """Raises InputError for keys of which nothing is known. used: keys of parameters and scales, as the file spells them."""
    harmless = (KNOWN, QUANTIZATION_MARK)
    unknown = [k for usual, k in keys.items() if k not in used and not any(p.fullmatch(usual) for p in harmless)]
    if unknown:
        raise InputError(
            f"{place} contains {len(unknown)} key(s) that do not belong to the model, such as {min(unknown)}: what they mean is not "
            "known, so choose a file without them."
        )
    _check_quantization(used, weights, place)


def _check_quantization(used: set[str], weights: Weights, place: str) -> None:
    """Raises InputError for formats of ComfyUI that are not a factor per weight, and if the factors are missing."""
    marks = [key for key in weights.stored if QUANTIZATION_MARK.fullmatch(key)]
    for key in (k for k in marks if k.endswith("comfy_quant")):
        text = bytes(weights.read([key])[key].to(torch.uint8).tolist())
        try:
            form = json.loads(text).get("format")
        except (ValueError, AttributeError):
            form = text[:40].decode(errors="replace")
        if form not in QUANTIZATIONS:
            raise InputError(f"{place}: {key} states the format {form}, which is not supported: {PLAIN}.")
    if any(k.endswith("scaled_fp8") for k in marks) and not any(k.endswith(SCALES) for k in used):
        raise InputError(
            f"{place} states scaled float8 weights, by its key {marks[0]}, but contains no scales: download it again, or {PLAIN}."
        )


def value(found: Found, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The value of a parameter, in the dtype that the file stores, or float32 if it has a scale."""
    origin = found.origin
    tensor = tensors[origin.key]
    if found.scale is not None:
        factor = tensors[found.scale].float().flatten()
        tensor = tensor.float() * factor.view(-1, *[1] * (tensor.ndim - 1))
    if origin.third is not None:
        tensor = tensor.chunk(3)[origin.third]
    if origin.transposed and not (origin.key.endswith(".weight") and tuple(tensor.shape) == shape):
        tensor = tensor.T.contiguous()
    return tensor.reshape(shape)
