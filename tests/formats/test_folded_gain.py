"""LoHa and LoKr files have alpha = rank, and sizes that LyCORIS finds again: its own code makes of them what ours computes."""

import copy
import json
import math

import pytest
import torch
from lycoris import modules as lycoris
from lycoris.functional.general import factorization
from networks import random_network, unet_output
from safetensors.torch import load_file, save_file
from sliders.adaptors import ALGORITHMS
from sliders.adaptors.base import shape_of
from sliders.adaptors.lokr import LoKr, factorized, found_again
from sliders.config.schema import Network
from sliders.formats.slider_file import load_slider, open_slider, save_slider, slider_tensors
from sliders.formats.spelling import by_module
from sliders.models.layers import reachable_layers
from sliders.models.sd.family import SD1_FAMILY, SD2_FAMILY
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import file_key
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.system.weight_files import open_weights
from torch import nn

SQUARE_FAILS = nn.Conv2d(1920, 640, 3, padding=1)  # LyCORIS fails on a LoKr of low rank without factor


def metadata(**settings):
    network = Network(**{"type": "c3lier", "rank": 4, "training_method": "full", **settings})
    return {"sliders.config": json.dumps({"network": network.model_dump()})}


@pytest.mark.parametrize("alpha", [0.01, 1.0, 3.0, 4.0, 64.0])
@pytest.mark.parametrize("case", [{"algo": "loha"}, {"algo": "lokr", "rank": 2, "factor": 2}, {"algo": "lokr"}])
def test_lycoris_merges_what_the_network_computes(tmp_path, case, alpha):
    """`merge_to` applies alpha / rank twice to these."""
    unet = build_narrow_sdxl().unet
    network = random_network(unet, "c3lier", "noxattn-hspace", alpha=alpha, **case)
    network.set_multipliers(torch.tensor([0.1]))
    wanted = unet_output(unet)
    path, settings = tmp_path / "a.safetensors", metadata(alpha=alpha, training_method="noxattn-hspace", **case)
    save_slider(path, slider_tensors(network, SDXL_FAMILY, torch.float32), settings, SDXL_FAMILY)
    network.remove()
    tensors, merged = load_file(path), copy.deepcopy(unet).requires_grad_(False)
    for name in network.module_paths:
        kind, found = lycoris.get_module(tensors, file_key(name))
        lycoris.make_module(kind, found, file_key(name), merged.get_submodule(name)).merge_to(0.1)
    scale = (wanted - unet_output(unet)).abs().max().item()
    assert scale > 1e-5
    assert (unet_output(merged) - wanted).abs().max() < 1e-4 * scale + 5e-6
    for parts in by_module(tensors, SDXL_FAMILY).values():
        rows = next((len(parts[part]) for part in ("hada_w1_b", "lokr_w2_b") if part in parts), None)
        assert rows is None or parts["alpha"] == rows
    again = open_slider(path, unet, SDXL_FAMILY)
    again.set_multipliers(torch.tensor([0.1]))
    assert (unet_output(unet) - wanted).abs().max() < 1e-4 * scale + 5e-6


@pytest.mark.parametrize("algo", ["loha", "lokr"])
def test_files_written_before_still_have_their_effect(tmp_path, algo):
    """Their alpha is not the rank."""
    unet = build_narrow_sdxl().unet
    settings = {"algo": algo, "rank": 2, **({"factor": 2} if algo == "lokr" else {})}
    network = random_network(unet, alpha=3.0, **settings)
    wanted = unet_output(unet)
    old = {f"{file_key(p)}.{k}": t.contiguous() for p, parts in network.tensors().items() for k, t in parts.items()}
    network.remove()
    assert {t.item() for k, t in old.items() if k.endswith("alpha")} >= {3.0}
    path = tmp_path / "old.safetensors"
    save_file(old, path, metadata(alpha=3.0, **settings))
    again = open_slider(path, unet, SDXL_FAMILY)
    assert torch.allclose(unet_output(unet), wanted, atol=1e-6)
    again.remove()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.001, 0.3, 900.0])
@pytest.mark.parametrize("algo", ["loha", "lokr"])
def test_half_precision_neither_underflows_nor_overflows(algo, alpha, dtype):
    """Weights as after a short training: the one that began at zero is still small."""
    layer, generator = nn.Linear(1280, 1280), torch.Generator().manual_seed(0)
    arguments = {"factor": 4} if algo == "lokr" else {}
    adaptor = ALGORITHMS[algo](layer, 16, alpha, generator, **arguments)
    with torch.no_grad():
        for parameter in adaptor.parameters():
            if not parameter.any():
                parameter.normal_(std=1e-5, generator=generator)
    parts = {k: t if k == "alpha" else t.to(dtype) for k, t in adaptor.for_files(adaptor.tensors(), layer).items()}
    again = ALGORITHMS[algo](layer, 16, 1.0, **arguments)
    again.load_tensors({part: tensor.float() for part, tensor in parts.items()})
    x = torch.randn(4, 1280, generator=generator)
    wanted, found = (a(x, torch.tensor([a.gain])) for a in (adaptor, again))
    assert all(t.isfinite().all() for t in parts.values())
    # a weight of 1e-5 has 8 bits in float16, whatever its alpha: as files had it before
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def layer_shapes():
    unets = (
        SDXL_FAMILY.weightless_denoiser("any/sdxl"),
        SD1_FAMILY.weightless_denoiser("any/sd1"),
        SD2_FAMILY.weightless_denoiser("any/sd2"),
    )
    return sorted({shape_of(layer) for unet in unets for layer in reachable_layers(unet).values()})


def of_shape(shape):
    out, into, *kernel = shape
    return nn.Conv2d(into, out, kernel, padding=kernel[0] // 2) if kernel else nn.Linear(into, out)


def is_read_by_lycoris(parts, layer):
    """Its own code builds the module and copies the weights into it, which raises if the sizes are others."""
    kind, found = lycoris.get_module({f"x.{part}": tensor for part, tensor in parts.items()}, "x")
    try:
        return lycoris.make_module(kind, found, "x", layer) is not None
    except RuntimeError:
        return False


@pytest.mark.parametrize("factor", [None, 2, 3, 4, 7, 8, 16, 24, 31, 32, 64])
@pytest.mark.parametrize("rank", [1, 16])
def test_lycoris_reads_a_lokr_of_every_layer_that_models_have(factor, rank):
    for shape in layer_shapes():
        with torch.device("meta"):
            layer = of_shape(shape)
        adaptor = LoKr(layer, rank, float(rank), None, factor)
        parts = adaptor.tensors()
        if "lokr_w2_b" in parts:
            (out, into, *kernel), (l, m) = shape, adaptor.w1.shape  # noqa: E741
            found = found_again((l, out // l), (m, into // m), math.prod(kernel))
            assert found == is_read_by_lycoris(parts, layer), shape
        assert is_read_by_lycoris(adaptor.for_files(parts, layer), layer), shape


def test_sizes_are_split_as_lycoris_does():
    for size in (*range(1, 100), 320, 640, 768, 960, 1024, 1280, 1920, 2048, 2560, 5120, 10240):
        for factor in (None, *range(2, 130)):
            assert factorized(size, factor) == factorization(size, factor or -1), (size, factor)


def test_a_lokr_that_is_stored_whole_has_its_effect_again():
    torch.manual_seed(0)
    adaptor = LoKr(SQUARE_FAILS, 4, 3.0)
    nn.init.normal_(adaptor.w2_b)
    parts = adaptor.for_files(adaptor.tensors(), SQUARE_FAILS)
    assert set(parts) == {"lokr_w1", "lokr_w2", "alpha"}
    again = LoKr(SQUARE_FAILS, 4, 3.0)
    assert again.accepts({part: tensor.shape for part, tensor in parts.items()})
    again.load_tensors(parts)
    x = torch.randn(2, 1920, 3, 3)
    wanted, found = (a(x, torch.tensor([0.7]) * a.gain) for a in (adaptor, again))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    kind, found = lycoris.get_module({f"x.{part}": tensor for part, tensor in parts.items()}, "x")
    module = lycoris.make_module(kind, found, "x", SQUARE_FAILS)
    assert torch.allclose(module.get_diff_weight(1.0, SQUARE_FAILS.weight.shape)[0],
                          torch.kron(parts["lokr_w1"][:, :, None, None], parts["lokr_w2"]), atol=1e-6)  # fmt: skip


def test_a_slider_with_layers_stored_whole_is_sampled_like_the_network(tmp_path, monkeypatch):
    """On the narrow model no layer needs it, so here all do."""
    unet = build_narrow_sdxl().unet
    settings = {"algo": "lokr", "rank": 2, "factor": 2}
    network = random_network(unet, alpha=3.0, **settings)
    network.set_multipliers(torch.tensor([0.7, -1.0]))
    wanted = unet_output(unet)
    monkeypatch.setattr("sliders.adaptors.lokr.found_again", lambda *sizes: False)
    tensors = slider_tensors(network, SDXL_FAMILY, torch.float32)
    network.remove()
    assert not any("lokr_w2_b" in key for key in tensors)
    path = tmp_path / "a.safetensors"
    save_slider(path, tensors, metadata(alpha=3.0, **settings), SDXL_FAMILY)
    again = open_slider(path, unet, SDXL_FAMILY)
    again.set_multipliers(torch.tensor([0.7, -1.0]))
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)
    again.remove()
    third = random_network(unet, alpha=1.0, **settings)
    load_slider(open_weights(path, ""), third, SDXL_FAMILY)
    third.set_multipliers(torch.tensor([0.7, -1.0]))
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)
