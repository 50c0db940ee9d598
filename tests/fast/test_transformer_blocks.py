"""Fused blocks of flow-matching transformers against diffusers'; without a GPU, in Triton's interpreter."""

import pytest
import torch
from flows import FLOWS
from networks import random_network
from sliders.compute.patches import is_patched
from sliders.fast import path
from sliders.fast.path import FastPath
from sliders.models.layers import architecture_of
from sliders.models.zimage import transformer as zimage_transformer

kernels = pytest.importorskip("sliders.fast.kernels", reason="needs Triton", exc_type=ImportError)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tested in test_gpu.py")


def output_and_gradient(transformer, inputs, weights):
    (output,) = transformer(**inputs)
    output.square().sum().backward()
    weights.gather_gradients()
    return output.detach(), weights.master.grad.clone()


@pytest.mark.parametrize(
    ("name", "kind", "checkpointed"),
    [
        ("zimage", "c3lier", True),
        ("zimage, masked", "lierla", False),
    ],
)
def test_fused_blocks_compute_the_same(name, kind, checkpointed, monkeypatch):
    """With LoRAs at two multipliers; their gradients are those of the plain path."""
    monkeypatch.setattr(zimage_transformer, "MULTIPLE", 2)  # Triton's interpreter takes long for 32 tokens
    transformer, inputs = FLOWS[name]()
    network = random_network(transformer, kind)
    network.set_multipliers(torch.tensor([-1.0, 2.0]))
    before, found = [m.__dict__.get("forward") for m in transformer.modules()], []
    for fused in (False, True):
        monkeypatch.setattr(path, "can_fuse", lambda device, fused=fused: fused)
        with FastPath(transformer, [network], trains=True) as fast:
            if fused and checkpointed:
                transformer.enable_gradient_checkpointing()
            blocks = [m for m in transformer.modules() if type(m).__name__ in architecture_of(transformer).compiled]
            assert {is_patched(block) for block in blocks} == {fused}
            found.append(output_and_gradient(transformer, inputs, fast.weights[0]))
    for plain, ours in zip(*found, strict=True):
        assert (ours - plain).norm() <= 1e-5 * plain.norm()
    assert [m.__dict__.get("forward") for m in transformer.modules()] == before


@torch.no_grad()
def test_tokens_of_z_image_may_be_modulated_apart_and_query_and_key_adapted_apart(monkeypatch):
    monkeypatch.setattr(path, "can_fuse", lambda device: True)
    transformer, _ = FLOWS["zimage"]()
    block = transformer.layers[0]
    network = random_network(transformer, "lierla", exclude=["*to_k"])
    network.set_multipliers(torch.tensor([-1.0, 2.0]))
    generator = torch.Generator().manual_seed(0)
    x, adaln = torch.randn(2, 3, 32, generator=generator), torch.randn(3, 2, 32, generator=generator)
    rotation = torch.polar(torch.ones(2, 3, 8), torch.randn(2, 3, 8, generator=generator))
    noisy = torch.tensor([[1, 0, 1], [0, 0, 1]])
    arguments = ((adaln[0],), (None, noisy, adaln[1], adaln[2]))
    wanted = [block(x, None, rotation, *a) for a in arguments]
    with FastPath(transformer, [network]):
        found = [block(x, None, rotation, *a) for a in arguments]
    for ours, plain in zip(found, wanted, strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)
