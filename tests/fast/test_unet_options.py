"""Options that change how the UNet computes must not change its results or the names of its modules."""

import sys
import types
import weakref

import pytest
import torch
from diffusers.models.attention_processor import Attention
from networks import random_inputs, random_network, unet_output
from sliders.adaptors import ALGORITHMS
from sliders.compute import quantization
from sliders.compute.device import place
from sliders.compute.quantization import BYTE, ByteLinear, quantize
from sliders.config.schema import Config, Other
from sliders.fast.attention import HALF_ONLY, SDPA, ChosenAttention, check_capability
from sliders.fast.compilation import check_compilation, compile_denoiser
from sliders.fast.kernel_support import can_fuse
from sliders.formats.slider_file import slider_tensors
from sliders.models.diffusers_unet.architecture import UNET
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.keys import sdxl_file_keys
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.system.errors import InputError

# the operations that PyTorch runs on a CPU; test_gpu.py has those of a GPU
OPERATIONS = {
    "auto": "aten::_scaled_dot_product_flash_attention_for_cpu",
    "sdpa": "aten::_scaled_dot_product_flash_attention_for_cpu",
    "flash": "aten::_scaled_dot_product_flash_attention_for_cpu",
    "math": "aten::_scaled_dot_product_attention_math",
}


def count_operation(unet, name):
    with torch.profiler.profile() as profiler:
        output = unet_output(unet)
    return output, sum(event.count for event in profiler.key_averages() if event.key == name)


def other(**keys) -> Other:
    """The section of a config with these keys."""
    return Config.model_validate({"pretrained_model": {"name_or_path": "tiny"}, "other": keys}).other


@pytest.mark.parametrize(
    ("settings", "operation"),
    [({"attention": name}, operation) for name, operation in OPERATIONS.items()]
    + [({"use_pytorch_SDPA": False}, OPERATIONS["math"])],
)
def test_every_attention_layer_uses_the_chosen_backend(settings, operation):
    unet = build_narrow_sdxl().unet
    wanted, before = unet_output(unet), unet.attn_processors
    chosen = ChosenAttention(unet, other(**settings).attention)
    found, calls = count_operation(unet, operation)
    assert calls == len(unet.attn_processors)
    assert torch.allclose(found, wanted, atol=1e-5)
    chosen.restore()
    assert unet.attn_processors == before


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("xformers", "xformers.ops", "memory_efficient_attention"),
        ("flash-attn", "flash_attn", "flash_attn_func"),
    ],
)
def test_every_attention_layer_calls_the_package(monkeypatch, name, module, function):
    """The package is replaced, because it needs a GPU. Both take [B, n, heads, d], according to their documentation."""
    shapes = []

    def attend(query, key, value):
        shapes.append((query.shape, key.shape, value.shape))
        heads_first = (t.transpose(1, 2) for t in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)

    for part in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    setattr(sys.modules[module], function, attend)
    unet = build_narrow_sdxl().unet
    wanted = unet_output(unet)
    ChosenAttention(unet, name)
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)
    assert len(shapes) == len(unet.attn_processors)
    heads = {m.heads for m in unet.modules() if isinstance(m, Attention)}
    assert {query[2] for query, _, _ in shapes} == heads


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_backends_are_refused_on_gpus_that_are_too_old(precision):
    refused = {*HALF_ONLY, *(("efficient", "xformers") if precision == "bfloat16" else ())}
    for name in ("auto", "xformers", "flash-attn", *SDPA):
        check_capability(name, (8, 0), precision)
        if name not in refused:
            check_capability(name, (7, 5), precision)
            continue
        message = rf"other.attention: {name} needs .*8\.0 .* {precision}.* has 7\.5: set other.attention: auto"
        with pytest.raises(InputError, match=message):
            check_capability(name, (7, 5), precision)


def test_the_forks_true_and_false_keep_their_meaning():
    assert (other(torch_compile=True).torch_compile, other(torch_compile=False).torch_compile) == ("regional", "off")
    assert other(cuda_graph=False).cuda_graph == "off"  # YAML's bare off
    assert other(use_xformers=True).attention == "xformers"
    assert other(use_xformers=True, attention="auto", use_pytorch_SDPA=False).attention == "xformers"
    assert other(use_xformers=True, attention="sdpa").attention == "sdpa"


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_compilation_changes_no_names_and_no_results(algo):
    """With dynamo's eager backend, which gets the same graphs as inductor but needs no minutes for C++."""
    unet = build_narrow_sdxl().unet
    network = random_network(unet, algo=algo)
    names, wanted = [name for name, _ in unet.named_modules()], unet_output(unet)
    assert (
        compile_denoiser(unet.mid_block, "regional", UNET.compiled, backend="eager") == 4
    )  # two ResNets, a transformer of depth two
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)
    assert [name for name, _ in unet.named_modules()] == names
    keys = slider_tensors(network, SDXL_FAMILY, torch.float32)
    assert {key.split(".", 1)[0] for key in keys} <= sdxl_file_keys()
    network.set_multipliers(torch.zeros(1))
    assert not torch.allclose(
        unet_output(unet), wanted, atol=1e-3
    )  # multipliers are not constants of the compiled code


def test_compilation_is_refused_without_a_compiler(monkeypatch, tmp_path):
    check_compilation("regional", "cpu")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    check_compilation("off", "cpu")
    with pytest.raises(InputError, match=r"other.torch_compile: full .*was not found.* C\+\+ compiler .*headers.* off"):
        check_compilation("full", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels run")
def test_kernels_that_cannot_run_are_reported_once(capsys):
    with pytest.raises(InputError, match=r"other.torch_compile: regional .*cuda:0.*Triton.*gcc.*headers.* off"):
        check_compilation("regional", "cuda:0")
    assert not can_fuse("cpu")
    assert not capsys.readouterr().out
    assert not (can_fuse("cuda:0") or can_fuse("cuda:0"))
    said = capsys.readouterr().out
    assert said.count("note:") == 1 and "gcc" in said and "headers" in said


# {kind: largest relative error}; nf4 also works on a CPU, although a run there is refused
QUANTISED = {"int8": 0.02, "fp8": 0.05, "nf4": 0.2}


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_unet_is_smaller_and_computes_nearly_the_same(kind):
    unet = build_narrow_sdxl().unet.requires_grad_(False)
    wanted, names = unet_output(unet), [name for name, _ in unet.named_modules()]
    size = sum(p.numel() * p.element_size() for p in unet.parameters())
    quantize(unet, kind, "cpu", torch.float32, UNET.quantized)
    place(unet, "cpu", torch.float32)  # as the trainer does
    unet.to(memory_format=torch.channels_last)
    assert [name for name, _ in unet.named_modules()] == names
    assert sum(p.numel() * p.element_size() for p in unet.parameters()) < 0.8 * size
    assert (unet_output(unet) - wanted).norm() < QUANTISED[kind] * wanted.norm()


def test_quantisation_frees_each_layer_before_the_next(monkeypatch):
    unet = build_narrow_sdxl().unet
    layers = [m for n, m in unet.named_modules() if type(m) is torch.nn.Linear and ".attentions." in f".{n}"]
    alive = weakref.WeakSet(layers)
    count, most = len(layers), []
    del layers
    make = quantization.ByteLinear

    def watched(linear, dtype):
        most.append(len(alive))
        return make(linear, dtype)

    monkeypatch.setattr(quantization, "ByteLinear", watched)
    quantize(unet, "fp8", "cpu", torch.float32, UNET.quantized)
    assert most == list(range(count, 0, -1))


@pytest.mark.parametrize("kind", BYTE)
def test_weights_are_rounded_to_the_nearest_value_and_gradients_pass_through(kind):
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 40)
    layer = ByteLinear(linear, BYTE[kind])
    weight = (layer.weight.float() * layer.step).detach()
    step = {"int8": layer.step / 2, "fp8": linear.weight.abs() / 16 + layer.step / 2**10}[kind]
    assert ((weight - linear.weight).abs() <= 1.0001 * step).all()
    x, upstream = torch.randn(3, 5, 24, requires_grad=True), torch.randn(3, 5, 40)
    assert torch.allclose(layer(x), x @ weight.T + linear.bias, atol=1e-6)
    (found,) = torch.autograd.grad(layer(x), x, upstream)
    assert torch.allclose(found, upstream @ weight, atol=1e-5)


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_layer_keeps_no_input_for_its_backward_pass(kind):
    """Keeping it would undo the saving of gradient checkpointing."""
    model = torch.nn.ModuleDict({"attentions": torch.nn.ModuleList([torch.nn.Linear(64, 64)])}).requires_grad_(False)
    quantize(model, kind, "cpu", torch.float32, UNET.quantized)
    x = torch.randn(8, 64, requires_grad=True) * 1.0  # the only reference
    kept, output = weakref.ref(x), model["attentions"][0](x)
    del x
    assert output.requires_grad and kept() is None


@pytest.mark.parametrize(
    ("kind", "amp", "algo"),
    [(kind, amp, "lora") for kind in QUANTISED for amp in (False, True)]
    + [("int8", True, algo) for algo in ALGORITHMS if algo != "lora"],
)
def test_adaptors_of_a_quantised_unet_learn(kind, amp, algo):
    unet = build_narrow_sdxl().unet.requires_grad_(False)
    quantize(unet, kind, "cpu", torch.float32, UNET.quantized)
    network = random_network(unet, algo=algo)
    base = unet_output(unet)
    network.set_multipliers(torch.zeros(1))
    assert not torch.allclose(unet_output(unet), base, atol=1e-3)
    network.set_multipliers(torch.ones(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        loss = unet(**random_inputs()).sample.float().square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_autocast_changes_a_quantised_layers_gradient_only_by_rounding():
    torch.manual_seed(0)
    layer, x, upstream = (
        ByteLinear(torch.nn.Linear(24, 40), BYTE["fp8"]),
        torch.randn(3, 24, requires_grad=True),
        torch.randn(3, 40),
    )
    (exact,) = torch.autograd.grad(layer(x), x, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    (found,) = torch.autograd.grad(output, x, upstream.bfloat16())
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 0.01 * exact.norm()
