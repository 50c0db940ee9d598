"""Importing a run's libraries: nothing is left changed, and what is hidden meanwhile can be used afterwards."""

import gc
import importlib.util
import json
import subprocess
import sys

import pytest
from sliders.system.imports import may_be_quantised, quick_imports

START = """
import gc, sys
from sliders.system.imports import quick_imports
with quick_imports("model.safetensors"):
    from sliders.train.runs import run_all
print("bitsandbytes" in sys.modules, gc.isenabled(), gc.get_freeze_count() > 100_000)
from bitsandbytes.nn import Linear4bit
"""


def found(package):
    return importlib.util.find_spec(package) is not None


@pytest.fixture
def unimported(monkeypatch):
    for package in ("diffusers", "peft", "sklearn", "bitsandbytes"):
        monkeypatch.delitem(sys.modules, package, raising=False)


@pytest.mark.parametrize("fails", [False, True])
def test_unused_packages_are_hidden_only_during_the_imports(unimported, tmp_path, fails):
    (tmp_path / "model.safetensors").touch()
    try:
        with quick_imports(str(tmp_path / "model.safetensors")):
            assert not found("peft") and not found("bitsandbytes") and found("pytest")
            assert not gc.isenabled()
            if fails:
                raise ImportError
    except ImportError:
        assert fails
    assert found("peft") and found("bitsandbytes")
    assert gc.isenabled()


def test_nothing_is_hidden_from_libraries_that_have_found_it(unimported, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", sys)
    with quick_imports(None):
        assert found("peft") and found("bitsandbytes")


def test_diffusers_finds_bitsandbytes_where_a_model_may_need_it(unimported, tmp_path):
    (tmp_path / "unet").mkdir()
    config = tmp_path / "unet" / "config.json"
    for entries, may in (({}, False), ({"quantization_config": {"load_in_4bit": True}}, True)):
        config.write_text(json.dumps(entries))
        assert may_be_quantised(str(tmp_path)) is may
        with quick_imports(str(tmp_path)):
            assert found("bitsandbytes") is may
    assert may_be_quantised("someone/a-model")
    assert not may_be_quantised("tiny")


def test_the_trainer_starts_without_bitsandbytes_and_can_import_it_later():
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    first, last = done.stdout.splitlines()
    assert first == "now     importing PyTorch and the model libraries"
    assert last.split() == ["False", "True", "True"]
