"""Weights as one tensor give the same outputs and gradients as single ones."""

import torch
from networks import random_inputs, random_network
from sliders.adaptors.flat_weights import FlatWeights
from sliders.models.sdxl.narrow import build_narrow_sdxl


def gradients_of(unet, network):
    network.zero_grad()
    unet(**random_inputs()).sample.square().sum().backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    return found


def test_flat_weights_hold_every_weight_and_its_gradient_once():
    unet = build_narrow_sdxl().unet.requires_grad_(False).to(memory_format=torch.channels_last)
    network = random_network(unet)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    wanted = gradients_of(unet, network)
    flat = FlatWeights(network)
    assert flat.master.numel() == network.num_parameters()
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())

    unet(**random_inputs()).sample.square().sum().backward()
    flat.gather_gradients()

    assert all(p.grad is None for p in network.parameters())
    assert torch.allclose(flat.master.grad.norm(), torch.stack([g.norm() for g in wanted.values()]).norm(), rtol=1e-5)
    with torch.no_grad():
        flat.master -= flat.master.grad  # gradient descent, visible in the network's parameters
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter, before[name] - wanted[name], rtol=1e-3, atol=1e-3), name


def test_gradients_of_an_interrupted_backward_pass_are_discarded():
    unet = build_narrow_sdxl().unet.requires_grad_(False).to(memory_format=torch.channels_last)
    network = random_network(unet)
    flat = FlatWeights(network)
    wanted = []
    for leftover in (False, True):
        if leftover:
            unet(**random_inputs()).sample.sum().backward()
            flat.drop_gradients()
        unet(**random_inputs()).sample.square().sum().backward()
        flat.gather_gradients()
        wanted.append(flat.master.grad.clone())
    assert torch.equal(*wanted)
