"""Replaces the `forward` of modules for a while. Adaptors, fused layers and captured calls all do it through `Patches`."""

from collections.abc import Callable
from typing import Self

from torch import nn

Forward = Callable[..., object]
PATCHES = "fractional_sliders_patches"  # attribute of a patched module: a list of its patches, the present one last


class ForeignPatchError(RuntimeError):
    """Other software has replaced the `forward` of a module, whose effect would be lost or doubled."""


class Patches:
    """Replaced `forward` methods. `restore`, or the end of its `with` block, puts the earlier ones back."""

    def __init__(self):
        self._replaced: list[tuple[nn.Module, Forward]] = []

    def replace(self, module: nn.Module, forward: Forward) -> None:
        """Sets `module.forward`. To call the present one in it, get `module.forward` first.

        Raises ForeignPatchError if other software has replaced it.
        """
        check_own(module)
        module.__dict__.setdefault(PATCHES, []).append(forward)
        module.forward = forward
        self._replaced.append((module, forward))

    def restore(self) -> None:
        """Puts the earlier methods back. Patches that were applied on top of these must be restored before."""
        for module, forward in reversed(self._replaced):
            patches = module.__dict__.get(PATCHES)
            if not patches:  # `unpatch` has removed them
                continue
            if patches[-1] is not forward:
                raise RuntimeError(f"{type(module).__name__}: restore first what was patched later")
            patches.pop()
            _show_last(module, patches)
        self._replaced.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.restore()


def check_own(module: nn.Module) -> None:
    """Raises ForeignPatchError if other software has replaced `module.forward`."""
    patches = module.__dict__.get(PATCHES)
    if module.__dict__.get("forward") is not (patches[-1] if patches else None):
        raise ForeignPatchError(
            f"{type(module).__name__}: other software has replaced its forward method: remove that first, such as the hooks of "
            "accelerate's CPU offloading."
        )


def unpatch(model: nn.Module) -> None:
    """Removes all patches from the modules of a model."""
    for module in model.modules():
        if module.__dict__.pop(PATCHES, None):
            del module.forward


def is_patched(module: nn.Module) -> bool:
    return PATCHES in module.__dict__


def _show_last(module: nn.Module, patches: list[Forward]) -> None:
    if patches:
        module.forward = patches[-1]
    else:
        del module.forward, module.__dict__[PATCHES]
