"""All weights of a network as one tensor: one optimizer kernel, one gradient norm, one cast."""

import torch
from torch import Tensor, nn

from sliders.adaptors.network import AdaptorNetwork


class FlatWeights:
    """Master weights [n] float32 with their gradient, and a working copy where the model computes in another dtype.

    The network's parameters become views of the master, so that saving, loading and reading them goes on as before.
    Weights of convolutions lie channels last in it, as the UNet's do: no step converts them.
    """

    def __init__(self, network: AdaptorNetwork, dtype: torch.dtype):
        parameters = _in_memory_order(network)
        master = torch.cat([_memory_order(p.detach()).flatten() for p in parameters])
        self.master = nn.Parameter(master)
        self.master.grad = torch.zeros_like(master)
        self._gradients = _views(self.master.grad, parameters)
        for parameter, view in zip(parameters, _views(master, parameters), strict=True):
            parameter.data = view
        self._copy = None if dtype == master.dtype else master.to(dtype)
        self._leaves: list[Tensor] = parameters
        if self._copy is not None:
            self._leaves = [v.requires_grad_() for v in _views(self._copy, parameters)]
            copy_of = {id(p): leaf for p, leaf in zip(parameters, self._leaves, strict=True)}
            for adaptor in network.adaptors:
                adaptor.use_copies({name: copy_of[id(p)] for name, p in adaptor.named_parameters()})

    @torch.no_grad()
    def refresh(self) -> None:
        """After the master has changed."""
        if self._copy is not None:
            self._copy.copy_(self.master)

    @torch.no_grad()
    def gather_gradients(self) -> Tensor:
        """What backward left on the weights → `master.grad`, and off them. Returns its norm, 0-dim float32."""
        grads = [leaf.grad for leaf in self._leaves]
        torch._foreach_copy_(self._gradients, grads)
        self.drop_gradients()
        return torch.linalg.vector_norm(self.master.grad)

    def drop_gradients(self) -> None:
        """What backward left on the weights, perhaps on some of them only, is forgotten."""
        for leaf in self._leaves:
            leaf.grad = None


def _in_memory_order(network: AdaptorNetwork) -> list[nn.Parameter]:
    """One kind after the other, all downs before all ups: those of neighbouring layers can be multiplied with as one."""
    adaptors = [dict(a.named_parameters()) for a in network.adaptors]
    kinds = dict.fromkeys(name for found in adaptors for name in found)
    return [found[kind] for kind in kinds for found in adaptors if kind in found]


def _memory_order(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def _views(flat: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Pieces of `flat` in the parameters' shapes."""
    pieces = flat.split([p.numel() for p in parameters])
    return [
        piece.view(_memory_order(p).shape).permute(0, 3, 1, 2) if p.ndim == 4 else piece.view(p.shape)
        for piece, p in zip(pieces, parameters, strict=True)
    ]
