"""The same on a CUDA GPU; skipped where there is none."""

import pytest
import torch
from conftest import make_scale_folders, write_experiment
from safetensors.torch import load_file
from sliders.plan import check_run
from sliders.settings import load_settings
from sliders.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def make_trainer(tmp_path, device, **overrides):
    data = make_scale_folders(tmp_path / "data")
    root = tmp_path / f"{device}{len(list(tmp_path.iterdir()))}"
    root.mkdir()
    flags = ["--folders", "verylow, low, high, veryhigh", "--scales", "-1, 0.5, 1, 2", "--iterations", "10"]
    argv = [*write_experiment(root, flags=flags, data=data, **overrides), "--device", device]
    (settings,), _ = load_settings(argv)
    return Trainer(settings, check_run(settings))


@pytest.fixture(autouse=True)
def plain_float32():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def test_a_gpu_draws_and_learns_what_a_cpu_does(tmp_path):
    losses = [make_trainer(tmp_path, device).run().losses for device in ("cpu", "0")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_encoders_leave_the_gpu_and_adaptors_stay_float32(tmp_path):
    trainer = make_trainer(tmp_path, "0", train={"precision": "bfloat16"})
    assert trainer.model.pipe.text_encoder is None
    assert {p.device.type for p in trainer.model.pipe.vae.parameters()} == {"cpu"}
    assert {(p.device.type, p.dtype) for p in trainer.network.parameters()} == {("cuda", torch.float32)}
    assert trainer.model.unet.dtype == torch.bfloat16


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "lion8bit"])
def test_optimizers_train_on_the_gpu(tmp_path, optimizer):
    report = make_trainer(tmp_path, "0", train={"precision": "bfloat16", "optimizer": optimizer}).run()
    assert all(t.isfinite().all() for t in load_file(report.path).values())
    assert report.peak_memory > 0


def test_a_step_waits_for_the_gpu_once(tmp_path):
    trainer = make_trainer(tmp_path, "0")
    trainer.step(0)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning) as caught:
            trainer.step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(w.message) for w in caught) == 1
