"""How the UNet computes attention: `other.attention` → the function that does it."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sliders.config.schema import Other
from sliders.system.errors import InputError
from sliders.system.installation import how_to_install

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # query, key, value [B, n, heads, d] → [B, n, heads, d]

# PyTorch's own kernels for scaled_dot_product_attention; sdpa leaves the choice to PyTorch.
SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# auto: compute capability → kernels in the order of their speed, of which the first that can do the job does it.
# Measured by bench_attention.py; elsewhere PyTorch's own order holds.
FASTEST = {(9, 0): ("cudnn", "flash", "efficient", "math")}
PACKAGES = {"xformers": ("xformers", ""), "flash-attn": ("flash_attn", "flash")}  # name → module, extra that brings it
ONLY_CUDA = ("cudnn", "efficient", "xformers", "flash-attn")
ONLY_HALF = ("cudnn", "flash", "flash-attn")  # on a GPU these take no float32,
OLDEST = (8, 0)  # and none that is older than Ampere;
NO_OLD_BFLOAT16 = ("efficient", "xformers")  # these take such a one, but not with bfloat16


def check_attention(settings: Other, device: str, precision: str) -> None:
    """Raises InputError for a backend that this machine, device or precision lacks. `device`: as torch calls it."""
    name = settings.attention_backend
    module, extra = PACKAGES.get(name, (None, ""))
    if module and importlib.util.find_spec(module) is None:
        raise InputError(
            f"other.attention: {name} needs {module}, which is not installed: {how_to_install(module, extra)}, or use auto, "
            "which is as fast."
        )
    cuda = device.startswith("cuda")
    if name in ONLY_CUDA and not cuda:
        raise InputError(f"other.attention: {name} needs a CUDA GPU, and this run is on {device}: use auto.")
    if name in ONLY_HALF and cuda and precision == "float32":
        raise InputError(f"other.attention: {name} computes no float32: use auto, or train.precision bfloat16.")
    if cuda:
        check_capability(name, torch.cuda.get_device_capability(device), precision)
        if name == "flash" and not torch.backends.cuda.is_flash_attention_available():
            raise InputError("other.attention: flash is not in this build of PyTorch: use auto.")


def check_capability(name: str, capability: tuple[int, int], precision: str) -> None:
    """Raises InputError for a backend that has no kernels for GPUs so old, or none for this precision there."""
    lacking = name in ONLY_HALF or (name in NO_OLD_BFLOAT16 and precision == "bfloat16")
    if lacking and capability < OLDEST:
        have, want = (".".join(map(str, numbers)) for numbers in (capability, OLDEST))
        raise InputError(
            f"other.attention: {name} needs a GPU of compute capability {want} or newer for {precision}, and this one has "
            f"{have}: set other.attention: auto."
        )


def set_attention(unet: UNet2DConditionModel, settings: Other) -> None:
    """Every attention layer of the UNet from now on computes with `other.attention`."""
    unet.set_attn_processor(AttentionProcessor(attend_with(settings.attention_backend, unet.device)))


JOINED = "fractional_sliders_projections"  # what `join_projections` leaves on a layer


def own_projections(unet: nn.Module) -> Iterator[tuple[Attention, tuple[nn.Module, ...]]]:
    """Each self-attention layer with those of its query, key and value, which all read the same tokens."""
    for module in unet.modules():
        if isinstance(module, Attention) and not module.is_cross_attention:
            yield module, (module.to_q, module.to_k, module.to_v)


def join_projections(attention: Attention, project: Callable[[Tensor], tuple[Tensor, ...]]) -> bool:
    """From now on `project` makes query, key and value [B, n, heads · d] of a self-attention's tokens [B, n, C] at once.
    False, and nothing is changed, where another one does already."""
    if JOINED in attention.__dict__:
        return False
    attention.__dict__[JOINED] = project
    return True


def part_projections(attention: Attention) -> None:
    """Each by its own layer again."""
    del attention.__dict__[JOINED]


class AttentionProcessor:
    """Attention (Vaswani et al. 2017, arXiv:1706.03762) of SDXL's transformer blocks, without the steps that do nothing
    in them: no mask, no group norm, no residual, no rescaling."""

    def __init__(self, attend: Attend):
        self.attend = attend

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_
    ) -> Tensor:
        if encoder_hidden_states is None and JOINED in attn.__dict__:
            projections = getattr(attn, JOINED)(hidden_states)
        else:
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            projections = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (p.unflatten(-1, (attn.heads, -1)) for p in projections)
        return attn.to_out[0](self.attend(query, key, value).flatten(2))


def attend_with(name: str, device: torch.device) -> Attend:
    """The function behind a name of `other.attention`."""
    if name == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention
    if name == "flash-attn":
        from flash_attn import flash_attn_func

        return flash_attn_func
    if name in SDPA:
        return _sdpa_of((name,))
    if name == "auto" and device.type == "cuda":
        order = FASTEST.get(torch.cuda.get_device_capability(device))
        return _sdpa_of(order) if order else _sdpa
    return _sdpa


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads_first = (t.transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def _sdpa_of(order: Sequence[str]) -> Attend:
    backends = [SDPA[name] for name in order]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backends, set_priority=True):
            return _sdpa(query, key, value)

    return attend
