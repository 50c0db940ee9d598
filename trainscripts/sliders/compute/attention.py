"""`other.attention`: the kernels with which the UNet computes attention."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sliders.compute.frozen import frozen_product, side_by_side
from sliders.compute.kernel_support import AMPERE, can_multiply
from sliders.config.schema import Other
from sliders.system.errors import InputError
from sliders.system.installation import how_to_install

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # query, key, value [B, n, heads, d] → [B, n, heads, d]

# kernels of PyTorch's scaled_dot_product_attention; with `sdpa`, PyTorch chooses
SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# auto: {compute capability: kernels, fastest first}, as measured by bench_attention.py. PyTorch takes the first that
# supports the inputs; on other GPUs it uses its own order.
FASTEST = {(9, 0): ("cudnn", "flash", "efficient", "math")}
PACKAGES = {"xformers": ("xformers", ""), "flash-attn": ("flash_attn", "flash")}  # {name: (module, our extra with it)}
CUDA_ONLY = ("cudnn", "efficient", "xformers", "flash-attn")
HALF_ONLY = ("cudnn", "flash", "flash-attn")  # on GPUs: no float32, and Ampere or newer
BFLOAT16_FROM_AMPERE = ("efficient", "xformers")  # run on older GPUs too, but not in bfloat16


def check_attention(settings: Other, device: str, precision: str) -> None:
    """Raises InputError if `other.attention` is not available on this machine, device or precision.

    device: as torch names it. precision: `train.precision`.
    """
    name = settings.attention_backend
    module, extra = PACKAGES.get(name, (None, ""))
    if module and importlib.util.find_spec(module) is None:
        raise InputError(
            f"other.attention: {name} needs {module}, which is not installed: {how_to_install(module, extra)}, or use auto, "
            "which is as fast."
        )
    cuda = device.startswith("cuda")
    if name in CUDA_ONLY and not cuda:
        raise InputError(f"other.attention: {name} needs a CUDA GPU, and this run is on {device}: use auto.")
    if name in HALF_ONLY and cuda and precision == "float32":
        raise InputError(f"other.attention: {name} does not support float32: use auto, or train.precision bfloat16.")
    if cuda:
        check_capability(name, torch.cuda.get_device_capability(device), precision)
        if name == "flash" and not torch.backends.cuda.is_flash_attention_available():
            raise InputError("other.attention: flash is missing from this build of PyTorch: use auto.")


def check_capability(name: str, capability: tuple[int, int], precision: str) -> None:
    """Raises InputError if a backend has no kernels for GPUs of this compute capability in this precision."""
    needs_ampere = name in HALF_ONLY or (name in BFLOAT16_FROM_AMPERE and precision == "bfloat16")
    if needs_ampere and capability < AMPERE:
        have, want = (".".join(map(str, numbers)) for numbers in (capability, AMPERE))
        raise InputError(
            f"other.attention: {name} needs a GPU of compute capability {want} or newer for {precision}, but this one has "
            f"{have}: set other.attention: auto."
        )


def set_attention(unet: UNet2DConditionModel, settings: Other) -> None:
    """Makes all attention layers of the UNet compute with `other.attention`.

    Moves weights of layers with the same input next to each other, so that their products can be one. Call it when the
    UNet is on its device.
    """
    for _, layers in self_attention_projections(unet):
        product = frozen_product(layers)
        if product is not None:
            product.join()
    context = None if settings.torch_compile == "full" else ContextProjections(unet)
    unet.set_attn_processor(AttentionProcessor(attend_with(settings.attention_backend, unet.device), context))


class ContextProjections:
    """The keys and values of all cross-attention layers: they read the same tokens, so one product computes them all.

    It shadows the UNet's `forward`, and computes them before it, so that a captured or repeated forward pass has its own.
    Adapted layers are left to themselves, as are all if `side_by_side` cannot compute them.
    """

    def __init__(self, unet: nn.Module):
        crossing = [m for m in unet.modules() if isinstance(m, Attention) and m.is_cross_attention]
        self._layers = {m: (m.to_k, m.to_v) for m in crossing}
        every = [layer for pair in self._layers.values() for layer in pair]
        self._found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        shadowed = unet.forward
        self._forward = shadowed._forward if isinstance(shadowed, ContextProjections) else shadowed
        self._product = side_by_side(every)
        self._sizes = [layer.out_features for layer in every]
        if self._product is not None:
            unet.forward = self

    def __call__(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *args, **kwargs):
        frozen = [m for m, pair in self._layers.items() if not any("forward" in layer.__dict__ for layer in pair)]
        self._found = {}
        if frozen:
            parts = self._product(encoder_hidden_states).split(self._sizes, -1)
            every = dict(zip(self._layers, zip(parts[::2], parts[1::2], strict=True), strict=True))
            self._found = {module: every[module] for module in frozen}
        return self._forward(sample, timestep, encoder_hidden_states, *args, **kwargs)

    def of(self, attention: Attention) -> tuple[Tensor, Tensor] | None:
        """Key and value [B, n, C] in this forward pass, or None if the layer must compute them itself."""
        return self._found.get(attention)


JOINED = "fractional_sliders_projections"  # attribute of an attention layer, set by `join_projections`


def self_attention_projections(unet: nn.Module) -> Iterator[tuple[Attention, tuple[nn.Module, ...]]]:
    """Yields each self-attention layer and its query, key and value layers, which all read the same tokens."""
    for module in unet.modules():
        if isinstance(module, Attention) and not module.is_cross_attention:
            yield module, (module.to_q, module.to_k, module.to_v)


def join_projections(attention: Attention, project: Callable[[Tensor], tuple[Tensor, ...]]) -> bool:
    """Makes `project` compute a self-attention's query, key and value [B, n, heads · d] from its tokens [B, n, C].

    Returns False, and changes nothing, if they are already joined.
    """
    if JOINED in attention.__dict__:
        return False
    attention.__dict__[JOINED] = project
    return True


def separate_projections(attention: Attention) -> None:
    """Undoes `join_projections`."""
    del attention.__dict__[JOINED]


class AttentionProcessor:
    """Attention (Vaswani et al. 2017, arXiv:1706.03762) for diffusers' transformer blocks.

    Leaves out what has no effect in them: mask, group norm, residual and rescaling.
    """

    def __init__(self, attend: Attend, context: ContextProjections | None = None):
        self.attend, self.context = attend, context

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_
    ) -> Tensor:
        if encoder_hidden_states is None and JOINED in attn.__dict__:
            projections = getattr(attn, JOINED)(hidden_states)
        elif self.context is not None and (found := self.context.of(attn)) is not None:
            projections = attn.to_q(hidden_states), *found
        else:
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            projections = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (p.unflatten(-1, (attn.heads, -1)) for p in projections)
        return attn.to_out[0](self.attend(query, key, value).flatten(2))


def attend_with(name: str, device: torch.device) -> Attend:
    """Returns the function that computes `other.attention`'s backend `name` on `device`."""
    if name == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention
    if name == "flash-attn":
        from flash_attn import flash_attn_func

        return flash_attn_func
    if name == "auto" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        attend = _sdpa_of(FASTEST[capability]) if capability in FASTEST else _sdpa
        return _few_keys_or(attend) if can_multiply(str(device)) else attend
    return _sdpa_of((name,)) if name in SDPA else _sdpa


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads_first = (t.transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def _sdpa_of(order: Sequence[str]) -> Attend:
    backends = [SDPA[name] for name in order]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backends, set_priority=True):
            return _sdpa(query, key, value)

    return attend


def _few_keys_or(attend: Attend) -> Attend:
    """Attention to a prompt with this project's kernel, any other with `attend`."""
    from sliders.compute import kernels

    def choose(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        few = key.shape[1] <= kernels.MOST_KEYS and query.shape[-1] <= kernels.MOST_CHANNELS
        frozen = not (key.requires_grad or value.requires_grad)
        if few and frozen and query.dtype != torch.float32 and not torch.compiler.is_compiling():
            return kernels.AttentionToFewKeys.apply(query, key, value)
        return attend(query, key, value)

    return choose
