"""Fused blocks of flow-matching transformers against diffusers'; without a GPU, in Triton's interpreter."""

import pytest
import torch
from diffusers.models.transformers.transformer_flux2 import (
    Flux2KVAttnProcessor,
    Flux2KVParallelSelfAttnProcessor,
)
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
        ("klein", "c3lier", False),
        ("klein", "lierla", True),
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
def test_what_the_kernels_do_not_compute_stays_plain(monkeypatch):
    """Modulation for each token, float16, several streams in a single block, processors that cache keys."""
    monkeypatch.setattr(path, "can_fuse", lambda device: True)
    transformer, inputs = FLOWS["klein"]()
    double, single = transformer.transformer_blocks[0], transformer.single_transformer_blocks[0]
    double.attn.set_processor(Flux2KVAttnProcessor())
    single.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    text, image = (torch.randn(2, n, 32, generator=torch.Generator().manual_seed(n)) for n in (4, 3))
    angles = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, -1)
    rotation, (mod,) = (angles.cos(), angles.sin()), torch.randn(1, 2, 7, 3 * 32).unbind()
    half = torch.cat([text, image], 1).half()
    overflowing = (mod[:, 0] * torch.tensor([1.0, 1.0, 5e4]).repeat_interleave(32)).half()
    calls = (
        lambda: double(image, text, mod[:, :1].repeat(1, 3, 2), mod[:, 0].repeat(1, 2), rotation),
        lambda: single(torch.cat([text, image], 1), None, mod, rotation),
        lambda: single(image, text, mod[:, 0], rotation, split_hidden_states=True),
        lambda: transformer(**inputs),
        lambda: single.half()(half, None, overflowing, rotation),  # which clips
    )
    for call in calls:
        single.float()
        wanted = call()
        single.float()
        with FastPath(transformer):
            assert not (is_patched(double.attn) or is_patched(single.attn))
            assert is_patched(double) and is_patched(single)
            for ours, plain in zip(call(), wanted, strict=True):
                assert torch.allclose(ours, plain, atol=1e-5 if plain.dtype == torch.float32 else 100)


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
