"""Advice on what a machine lacks: Windows has a PyTorch from `uv pip`, which `uv run --extra` would undo."""

import importlib.util

import pytest
from conftest import ROOT, write_experiment
from sliders.attention import check_attention
from sliders.errors import InputError
from sliders.fusion import can_fuse
from sliders.installation import why_no_gpu
from sliders.judges import check_lpips
from sliders.models.sdxl_unet import is_full_size
from sliders.optim import import_optimizer
from sliders.plan import check_run
from sliders.schema import Other
from sliders.settings import load_settings

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


@pytest.mark.parametrize(
    ("platform", "reason"),
    [("win32", "this PyTorch cannot use a GPU"), ("linux", "no CUDA GPU was found: see that `nvidia-smi` lists one.")],
)
def test_what_only_a_gpu_does_is_refused_with_the_reason_why_there_is_none(tmp_path, monkeypatch, platform, reason):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for device, told in (("0", True), ("cpu", False)):
        argv = [*write_experiment(tmp_path, pretrained_model={"quantize": "nf4"}), "--device", device]
        (settings,), _ = load_settings(argv)
        with pytest.raises(InputError) as error:
            check_run(settings)
        assert "nf4 needs a CUDA GPU, and this run is on cpu: use int8." in str(error.value)
        assert (f"\n--device: {reason}" in str(error.value)) == told


@pytest.mark.parametrize(("platform", "package"), [("linux", "triton"), ("win32", "triton-windows")])
def test_a_gpu_without_triton_is_told_what_is_slower_for_it(monkeypatch, capsys, platform, package):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    can_fuse.cache_clear()
    assert not (can_fuse("cuda:0") or can_fuse("cuda:0"))
    can_fuse.cache_clear()
    said = capsys.readouterr().out
    assert said.count("note:") == 1 and f"`uv pip install {package}`" in said and "more slowly" in said


def test_a_cpu_is_called_too_slow_for_a_model_of_full_size_only(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert why_no_gpu("trains", is_full_size("tiny")) == "no CUDA GPU was found, so the CPU trains."
    sdxl = "stabilityai/stable-diffusion-xl-base-1.0"
    assert why_no_gpu("trains", is_full_size(sdxl)).endswith("so the CPU trains: for SDXL that is far too slow.")
