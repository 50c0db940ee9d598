"""Which key of a file holds which parameter. Every key is used, known to be harmless, or refused by name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.models.diffusers_unet.folders import PARTS, Weights
from sliders.models.diffusers_unet.keys import UNET_PREFIX, VAE_PREFIX, Origin, open_clip_origin, unet_name, vae_name
from sliders.system.errors import InputError
from sliders.system.weight_files import Stored

Shapes = Mapping[str, tuple[int, ...]]  # of parameters
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BYTES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)  # may have a scale
SCALES = ("scale_weight", "weight_scale")  # instead of `weight`; ComfyUI's names, old and new
QUANTIZATIONS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")  # weight · scale
HUGGING_FACE, OPEN_CLIP = "Hugging Face", "OpenCLIP"
ENCODERS = {  # how names of text encoders begin in single files, and whose names follow
    "text_encoder": (
        ("conditioner.embedders.0.transformer.", HUGGING_FACE),
        ("cond_stage_model.transformer.", HUGGING_FACE),
        ("cond_stage_model.model.", OPEN_CLIP),
    ),
    "text_encoder_2": (
        ("conditioner.embedders.1.model.", OPEN_CLIP),
        ("conditioner.embedders.1.transformer.", HUGGING_FACE),
    ),
}
VAE_ATTENTION = r"(first_stage_model\..*\.attn_1)\."
SPELLINGS = tuple(  # of keys in single files → the usual ones
    (re.compile(pattern), usual)
    for pattern, usual in (
        (r"^vae\.", VAE_PREFIX),
        (r"^(.*\.transformer)\.(?=(embeddings|encoder|final_layer_norm)\.)", r"\1.text_model."),
        (rf"{VAE_ATTENTION}(to_q|query)\.", r"\1.q."),
        (rf"{VAE_ATTENTION}(to_k|key)\.", r"\1.k."),
        (rf"{VAE_ATTENTION}(to_v|value)\.", r"\1.v."),
        (rf"{VAE_ATTENTION}(to_out\.0|proj_attn)\.", r"\1.proj_out."),
        (rf"{VAE_ATTENTION}group_norm\.", r"\1.norm."),
    )
)
FOLDER_SPELLINGS = tuple(  # of keys in diffusers folders, as older versions wrote them
    (re.compile(rf"(\.attentions\.\d+)\.{old}\."), rf"\1.{new}.")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)
HARMLESS = re.compile(
    r"model_ema\..*|.*\.position_ids|(.*\.)?logit_scale|.*\.attn_mask|v_pred|ztsnr|global_step|"
    r"betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recip(m1)?_alphas_cumprod|posterior_\w+|lvlb_weights|logvar|"
    r"(denoiser|model_sampling)\.(log_)?sigmas|scale_factor|first_stage_model\.(loss|model_ema)\..*|embedding_manager\..*|"
    r".*\.(vision_model|visual|visual_projection)\..*|"  # CLIP's other half
    r"(cond_stage_model|conditioner\.embedders\.0)\.((transformer|model)\.)?text_projection(\.weight)?|"
    # the layer of OpenCLIP that Stable Diffusion 2 does not use
    r"cond_stage_model\.(model\.transformer\.resblocks|transformer\.text_model\.encoder\.layers)\.23\..*"
)
SCALE_OF_INPUT = re.compile(r".*\.(scale_input|input_scale)")  # for products in float8, which are not computed here
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


def single_file_origins(part: str, parameters: Shapes, config: Mapping, keys: Mapping[str, str]) -> dict[str, Origin]:
    """{parameter: its origin in a single file, in the usual spelling}. keys: those that the file has, in that spelling."""
    if part == "unet":
        blocks = config.get("up_block_types", ())
        names = {p: unet_name(p, lambda block: "CrossAttn" in blocks[block]) for p in parameters}
        if not any(key.startswith(UNET_PREFIX) for key in keys) and any(key.startswith("model_ema.") for key in keys):
            # only the moving averages were kept, whose names have no dots
            return {p: Origin(f"model_ema.diffusion_model{name.replace('.', '')}") for p, name in names.items()}
        return {p: Origin(UNET_PREFIX + name) for p, name in names.items()}
    if part == "vae":
        return {p: Origin(VAE_PREFIX + vae_name(p, len(config["block_out_channels"]))) for p in parameters}
    choices = ENCODERS[part]
    prefix, style = next((c for c in choices if any(key.startswith(c[0]) for key in keys)), choices[0])
    if style == HUGGING_FACE:
        bare = {p: p.removeprefix("text_model.") for p in parameters}
        return {
            p: Origin(prefix + (b if b.startswith("text_projection") else f"text_model.{b}")) for p, b in bare.items()
        }
    found = {}
    for parameter in parameters:
        origin = open_clip_origin(parameter)
        key = prefix + origin.key
        # ComfyUI takes `text_projection.weight` for a linear layer's weight
        key = f"{key}.weight" if origin.transposed and key not in keys and f"{key}.weight" in keys else key
        found[parameter] = Origin(key, origin.third, origin.transposed)
    return found


def folder_origins(parameters: Shapes, keys: Mapping[str, str]) -> dict[str, Origin]:
    """{parameter: its origin in a part of a diffusers folder}. Versions of transformers differ by `text_model.`."""
    found = {}
    for parameter in parameters:
        bare = parameter.removeprefix("text_model.")
        names = (parameter, bare, f"text_model.{bare}")
        found[parameter] = Origin(next((name for name in names if name in keys), parameter))
    return found


def usual_spellings(weights: Weights, spellings: tuple) -> dict[str, str]:
    """{key in the usual spelling: key in the file}. One that is there in both spellings keeps its own."""
    found: dict[str, str] = {key: key for key in weights.stored}
    for key in weights.stored:
        usual = key
        for pattern, replacement in spellings:
            usual = pattern.sub(replacement, usual)
        if usual not in found:
            found[usual] = found.pop(key)
    return found


def find_parameters(
    part: str, shapes: Shapes, origins: Mapping[str, Origin], keys: Mapping[str, str], weights: Weights, place: str
) -> dict[str, Found]:
    """Raises InputError if the part is missing or incomplete, if a shape differs, or if a dtype cannot be read."""
    title = PARTS[part]
    missing = [origin.key for origin in origins.values() if origin.key not in keys]
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
        origin = origins[parameter]
        key = keys[origin.key]
        stored = weights.stored[key]
        if not _fits(stored.shape, shape, origin):
            raise InputError(
                f"{place}: {key}, of its {title}, has the shape {list(stored.shape)}, which does not fit {list(shape)}: choose a model "
                "of usual sizes, or for a single file the folder with its JSON files as pretrained_model.config."
            )
        scale = _scale_of(key, weights.stored)
        _check_dtype(key, stored, scale, weights, place)
        found[parameter] = Found(Origin(key, origin.third, origin.transposed), scale)
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
    names = (key.removesuffix("weight") + scale for scale in SCALES)
    return next((name for name in names if name in stored), None)


def _check_dtype(key: str, stored: Stored, scale: str | None, weights: Weights, place: str) -> None:
    known = (*FLOATS, *BYTES) if scale else (*FLOATS, *BYTES[:2])
    name = str(stored.dtype).removeprefix("torch.")
    if stored.dtype not in known:
        raise InputError(
            f"{place}: {key} is stored as {name}, quantised weights of a kind that is not supported: choose a file with weights of "
            "16 or 32 bits."
        )
    if scale is None:
        return
    shape, rows = weights.stored[scale].shape, stored.shape[0] if stored.shape else 1
    whole = _squeezed((*shape, 1, 1))[:2]
    if weights.stored[scale].dtype not in FLOATS or whole not in ((1, 1), (rows, 1)):
        raise InputError(
            f"{place}: {scale}, of shape {list(shape)}, is not one factor, or one per output: choose a file with weights of 16 or "
            "32 bits."
        )
    if stored.dtype not in BYTES and scale.endswith(SCALES[1]):
        raise InputError(
            f"{place}: {scale} belongs to a weight of 8 bits, but {key} is stored as {name}: choose a file with weights of 16 or 32 bits."
        )


def check_foreign(weights: Weights, place: str) -> None:
    """Raises InputError for keys that are known to belong to something else than a model's plain weights."""
    for pattern, what in FOREIGN:
        found = [key for key in weights.stored if re.search(pattern, key)]
        if found:
            raise InputError(
                f"{place} contains {len(found)} key(s) of {what}, such as {found[0]}: choose a complete model of plain weights."
            )


def check_rest(used: set[str], keys: Mapping[str, str], weights: Weights, place: str) -> None:
    """Raises InputError for keys of which nothing is known. used: keys of parameters and scales, as the file spells them."""
    unknown = [
        key
        for usual, key in keys.items()
        if key not in used and not any(p.fullmatch(usual) for p in (HARMLESS, SCALE_OF_INPUT, QUANTIZATION_MARK))
    ]
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
            raise InputError(
                f"{place}: {key} states the format {form}, which is not supported: choose a file with weights of 16 or 32 bits."
            )
    if any(k.endswith("scaled_fp8") for k in marks) and not any(k.endswith(SCALES) for k in used):
        raise InputError(
            f"{place} states scaled float8 weights, by its key {marks[0]}, but contains no scales: download it again, or choose a file "
            "with weights of 16 or 32 bits."
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
