"""Advice on missing packages and GPUs. On Windows PyTorch comes from `uv pip`, which `uv run --extra` would undo."""

import importlib.util

import pytest
from conftest import ROOT, SCRIPTS, write_experiment
from sliders.compute.device import why_no_gpu
from sliders.config.schema import Other
from sliders.config.settings import load_settings
from sliders.fast.attention import check_attention
from sliders.fast.kernel_support import can_fuse
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.report.learned_measures import check_lpips
from sliders.system.errors import InputError
from sliders.train.optimizers import import_optimizer
from sliders.train.plan import make_plan

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
def test_a_missing_package_is_named_with_the_command_that_installs_it(package, platform, monkeypatch):
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


def test_on_windows_the_message_says_how_to_install_a_pytorch_with_cuda(monkeypatch):
    """It is the installed version, so uv has to be forced to reinstall it. README and guide give the same command."""
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.__version__", "2.13.0+cpu")
    message = why_no_gpu("trains", full_size=True)
    command = "`uv pip install --torch-backend=auto --reinstall-package torch torch==2.13.0`"
    assert command in message and "`uv run --no-sync …`" in message
    for readme in (ROOT / "README.md", SCRIPTS / "README.md"):
        assert command in readme.read_text(encoding="utf-8")
    assert '"torch==2.13.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("platform", "reason"),
    [
        ("win32", "this PyTorch cannot use a GPU"),
        ("linux", "no CUDA GPU was found: check that `nvidia-smi` lists one."),
    ],
)
def test_a_setting_that_needs_a_gpu_is_refused_with_the_reason_why_none_was_found(
    tmp_path, monkeypatch, platform, reason
):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for device, explained in (("0", True), ("cpu", False)):
        argv = [*write_experiment(tmp_path, pretrained_model={"quantize": "nf4"}), "--device", device]
        (settings,), _ = load_settings(argv)
        with pytest.raises(InputError) as error:
            make_plan(settings)
        assert "nf4 needs a CUDA GPU, and this run is on cpu: use int8." in str(error.value)
        assert (f"\n--device: {reason}" in str(error.value)) == explained


@pytest.mark.parametrize(("platform", "package"), [("linux", "triton"), ("win32", "triton-windows")])
def test_a_note_says_what_is_slower_without_triton(monkeypatch, capsys, platform, package):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    can_fuse.cache_clear()
    assert not (can_fuse("cuda:0") or can_fuse("cuda:0"))
    can_fuse.cache_clear()
    said = capsys.readouterr().out
    assert said.count("note:") == 1 and f"`uv pip install {package}`" in said and "more slowly" in said


def test_only_for_a_full_size_model_is_the_cpu_called_too_slow(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert why_no_gpu("trains", SDXL_FAMILY.is_full_size("tiny")) == "no CUDA GPU was found, so the CPU trains."
    sdxl = "stabilityai/stable-diffusion-xl-base-1.0"
    assert why_no_gpu("trains", SDXL_FAMILY.is_full_size(sdxl)).endswith(
        "so the CPU trains: for SDXL that is far too slow. `uv run trainscripts/imagesliders/check.py` says why, and what to do."
    )
