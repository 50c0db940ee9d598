"""`other.*`: how the UNet computes may change, what it computes and how its modules are called may not."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from sliders.attention import set_attention
from sliders.checkpoint import slider_tensors
from sliders.compilation import compile_blocks
from sliders.models.narrow import build_narrow_sdxl
from sliders.models.sdxl_keys import sdxl_file_keys
from sliders.schema import Other
from test_interop import random_network, unet_output


@pytest.mark.parametrize(("sdpa", "processor"), [(True, AttnProcessor2_0), (False, AttnProcessor)])
def test_attention_is_what_was_asked_for(sdpa, processor):
    unet = build_narrow_sdxl().unet
    wanted = unet_output(unet)
    set_attention(unet, Other(use_pytorch_SDPA=sdpa))
    assert {type(p) for p in unet.attn_processors.values()} == {processor}
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)


def test_compiling_renames_nothing_and_changes_no_result():
    """With dynamo's plain backend: the same graphs as inductor gets, without a C++ compiler's minutes."""
    unet = build_narrow_sdxl().unet
    network = random_network(unet)
    names, wanted = [name for name, _ in unet.named_modules()], unet_output(unet)
    assert compile_blocks(unet.mid_block, backend="eager") == 4  # two ResNets, a transformer of depth two
    assert torch.allclose(unet_output(unet), wanted, atol=1e-5)
    assert [name for name, _ in unet.named_modules()] == names
    keys = slider_tensors(network, torch.float32)
    assert {key.split(".", 1)[0] for key in keys} <= sdxl_file_keys()
    network.set_multipliers(torch.zeros(1))
    assert not torch.allclose(unet_output(unet), wanted, atol=1e-3)  # multipliers are read anew, not baked in
