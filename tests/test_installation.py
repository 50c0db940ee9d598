"""Advice on what a machine lacks: Windows has a PyTorch from `uv pip`, which `uv run --extra` would undo."""

import importlib.util

import pytest
from conftest import ROOT
from sliders.attention import check_attention
from sliders.errors import InputError
from sliders.installation import why_no_gpu
from sliders.judges import check_lpips
from sliders.models.sdxl_unet import is_full_size
from sliders.optim import import_optimizer
from sliders.schema import Other

PACKAGES = {
    "lion-pytorch": ("optimizers", lambda: import_optimizer("lion")),
    "prodigyopt": ("optimizers", lambda: import_optimizer("prodigy")),
    "dadaptation": ("optimizers", lambda: import_optimizer("dadaptadam")),
    "bitsandbytes": ("", lambda: import_optimizer("adamw8bit")),
    "lpips": ("lpips", check_lpips),
    "xformers": ("", lambda: check_attention(Other(attention="xformers"), "cuda:0", "bfloat16")),
    "flash-attn": ("flash", lambda: check_attention(Other(attention="flash-attn"), "cuda:0", "bfloat16")),
}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_a_missing_package_is_told_with_the_command_that_brings_it(package, platform, monkeypatch):
    def gone(name, *_):
        raise ImportError(f"No module named {name!r}")

    extra, need = PACKAGES[package]
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(importlib, "import_module", gone)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        need()
    by_extra = bool(extra) and platform != "win32"
    assert (f"`uv run --extra {extra} …`" in str(error.value)) == by_extra
    assert (f"`uv pip install {package}`" in str(error.value)) == (not by_extra)


def test_windows_is_told_how_to_get_a_pytorch_that_uses_its_gpu(monkeypatch):
    """The version that is installed already, so it must be told to install it again; the README says the same."""
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.__version__", "2.13.0+cpu")
    words = why_no_gpu("trains", full_size=True)
    command = "`uv pip install --torch-backend=auto --reinstall-package torch torch==2.13.0`"
    assert command in words and "`uv run --no-sync …`" in words
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert '"torch==2.13.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_cpu_is_called_too_slow_for_a_model_of_full_size_only(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert why_no_gpu("trains", is_full_size("tiny")) == "no CUDA GPU was found, so the CPU trains."
    sdxl = "stabilityai/stable-diffusion-xl-base-1.0"
    assert why_no_gpu("trains", is_full_size(sdxl)).endswith("so the CPU trains: for SDXL that is far too slow.")
