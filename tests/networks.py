"""Adaptor networks on the narrow SDXL, and inputs for its UNet."""

import torch
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import Network

SDXL_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def random_inputs(rows=2):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "sample": draw(rows, 4, 16, 16),
        "timestep": torch.tensor([500] * rows),
        "encoder_hidden_states": draw(rows, 77, 64),
        "added_cond_kwargs": {
            "text_embeds": draw(rows, 32),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]] * rows),
        },
    }


@torch.no_grad()
def unet_output(unet):
    return unet(**random_inputs()).sample


def random_network(unet, network_type="c3lier", method="full", **settings):
    network = AdaptorNetwork(
        unet, Network(**{"type": network_type, "rank": 4, "alpha": 2.0, "training_method": method, **settings})
    )
    randomize(network, seed=5)
    return network


def randomize(network, seed=1):
    """Away from the start, where the weights are zero that make an adaptor add nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                drawn = torch.empty(parameter.shape).normal_(std=0.05, generator=generator)
                parameter.copy_(drawn)  # the generator is the CPU's, the parameter may be on a GPU


def gathered_gradients(trainer):
    """{parameter: gradient} of the adaptors after a backward pass."""
    trainer.weights.gather_gradients()
    flat = trainer.weights.master.grad
    return {
        name: flat.as_strided(p.shape, p.stride(), p.storage_offset()).clone()
        for name, p in trainer.network.named_parameters()
    }
