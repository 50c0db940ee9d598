"""`other.attention`: the kernels with which the denoiser computes attention."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sliders.compute.patches import Patches, is_patched
from sliders.config.schema import Other
from sliders.fast.frozen import side_by_side
from sliders.fast.kernel_support import AMPERE, can_multiply
from sliders.system.errors import InputError
from sliders.system.installation import how_to_install

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # query, key, value [B, n, heads, d] → [B, n, heads, d]
Projection = Callable[[Tensor], tuple[Tensor, ...] | None]  # tokens [B, n, C] → query, key, value [B, n, heads · d]
Together = Callable[
    [Tensor], Tensor | None
]  # tokens [B, n, C] → several layers' outputs side by side, or None without adaptors
Reading = Callable[[], tuple[Tensor, Tensor]]  # → key, value [B, m, heads · d]

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
    name = settings.attention
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


def plain_attentions(denoiser: nn.Module) -> dict[str, Attention]:
    """{name of its processor: layer} of the attention layers that an `AttentionProcessor` can compute."""
    return {
        f"{name}.processor": module
        for name, module in denoiser.named_modules()
        if isinstance(module, Attention) and isinstance(module.processor, AttnProcessor | AttnProcessor2_0)
    }


def _kernels(name: str, device: torch.device) -> Sequence[str]:
    """PyTorch's kernels for the backend `name`, in their order. None: its own choice."""
    if name == "auto" and device.type == "cuda":
        return FASTEST.get(torch.cuda.get_device_capability(device), ())
    return (name,) if name in SDPA else ()


class AttentionProcessor:
    """Attention (Vaswani et al. 2017, arXiv:1706.03762) for diffusers' transformer blocks.

    Leaves out what has no effect in them: mask, group norm, residual and rescaling.

    project: computes a self-attention's query, key and value [B, n, heads · d] from its tokens [B, n, C] at once. read:
    returns a cross-attention's key and value. None, and a result that is None, mean that the layers compute them.
    """

    def __init__(self, attend: Attend, project: Projection | None = None, read: Reading | None = None):
        self.attend, self.project, self.read = attend, project, read

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projections = self.project(hidden_states) if self.project else None
        if projections is None:
            pair = self.read() if self.read else None
            projections = attn.to_q(hidden_states), *(pair or (attn.to_k(context), attn.to_v(context)))
        query, key, value = (p.unflatten(-1, (attn.heads, -1)) for p in projections)
        return attn.to_out[0](self.attend(query, key, value).flatten(2))


class ContextProjections:
    """The keys and values of cross-attention layers: they read the same tokens, so one product computes them all.

    It replaces the denoiser's `forward`, and computes them before it, so that a captured or repeated forward pass has its own.
    """

    def __init__(self, denoiser: nn.Module, attentions: Sequence[Attention], patches: Patches):
        """Of those attentions whose layers are not patched, if `side_by_side` can compute them."""
        free = [m for m in attentions if not (is_patched(m.to_k) or is_patched(m.to_v))]
        layers = [layer for m in free for layer in (m.to_k, m.to_v)]
        self._product = side_by_side(layers) if layers else None
        self._attentions = free if self._product else []
        self._sizes = [layer.out_features for layer in layers]
        self._found: dict[Attention, tuple[Tensor, Tensor]] = {}
        self._forward = denoiser.forward
        if self._attentions:
            patches.replace(denoiser, self._with_projections)

    def _with_projections(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *args, **kwargs):
        parts = self._product(encoder_hidden_states).split(self._sizes, -1)
        self._found = dict(zip(self._attentions, zip(parts[::2], parts[1::2], strict=True), strict=True))
        return self._forward(sample, timestep, encoder_hidden_states, *args, **kwargs)

    def reader(self, attention: Attention) -> Reading | None:
        """Returns a layer's key and value [B, n, C] in the present forward pass."""
        return partial(self._found_for, attention) if attention in self._attentions else None

    def _found_for(self, attention: Attention) -> tuple[Tensor, Tensor]:
        return self._found[attention]


def attend_with(name: str, device: torch.device, kernels: bool = True) -> Attend:
    """Returns the function that computes `other.attention`'s backend `name` on `device`.

    kernels: whether `auto` may use this project's own.
    """
    if name == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention
    if name == "flash-attn":
        from flash_attn import flash_attn_func

        return flash_attn_func
    order = _kernels(name, device)
    attend = _sdpa_of(order) if order else sdpa
    return _few_keys_or(attend) if name == "auto" and kernels and can_multiply(str(device)) else attend


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """As `Attend`, with PyTorch's kernels. mask [B, m] bool: which keys are attended."""
    heads_first = (t.transpose(1, 2) for t in (query, key, value))
    mask = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)


def _sdpa_of(order: Sequence[str]) -> Attend:
    backends = [SDPA[name] for name in order]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backends, set_priority=True):
            return sdpa(query, key, value)

    return attend


def _few_keys_or(attend: Attend) -> Attend:
    """Attention to a prompt with this project's kernel, any other with `attend`."""
    from sliders.fast import kernels

    def choose(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        few = key.shape[1] <= kernels.MOST_KEYS and query.shape[-1] <= kernels.MOST_CHANNELS
        frozen = not (key.requires_grad or value.requires_grad)
        if few and frozen and query.dtype != torch.float32 and not torch.compiler.is_compiling():
            return kernels.AttentionToFewKeys.apply(query, key, value)
        return attend(query, key, value)

    return choose


class ChosenAttention:
    """Until `restore`, all attention layers of a denoiser compute with the kernels of a backend.

    Those that an `AttentionProcessor` can compute get one. The others' processors call PyTorch's attention themselves, so
    these layers are patched, each by itself, because gradient checkpointing calls it again outside of the denoiser's `forward`.
    """

    def __init__(
        self, denoiser: ModelMixin, name: str, processors: Mapping[str, AttentionProcessor] | None = None, kernels: bool = True
    ):  # fmt: skip
        """name: of the backend. processors: for all layers that they can compute, if they do more than attend with it.

        kernels: whether `auto` may use this project's own.
        """
        self._denoiser, self._before, self._patches = denoiser, dict(denoiser.attn_processors), Patches()
        plain, order = plain_attentions(denoiser), _kernels(name, denoiser.device)
        if processors is None:
            processors = dict.fromkeys(plain, AttentionProcessor(attend_with(name, denoiser.device, kernels)))
        denoiser.set_attn_processor({**self._before, **processors})
        computed = set(plain.values())
        for module in denoiser.modules() if order else ():
            if hasattr(module, "get_processor") and module not in computed:
                self._patches.replace(module, _with_kernels(order, module.forward))

    def restore(self) -> None:
        self._patches.restore()
        self._denoiser.set_attn_processor(dict(self._before))


def _with_kernels(order: Sequence[str], forward: Callable) -> Callable:
    backends = [SDPA[name] for name in order]

    def ordered(*args, **kwargs):
        with sdpa_kernel(backends, set_priority=True):
            return forward(*args, **kwargs)

    return ordered
