"""All weights of a network as one tensor, so that optimizer, gradient norm and cast take one kernel each."""

import torch
from torch import Tensor, nn

from sliders.adaptors.gradient_sink import GradientSink
from sliders.adaptors.network import AdaptorNetwork


class FlatWeights:
    """`master` [n] float32 and its gradient, with a copy of the weights in `dtype`, the model's, if that is not float32.

    `shared` [n + 1] float32 is the gradient and room for the loss: what several processes average, as one tensor. A LoRA's
    gradients that are matrix products are written there in float32. The kernels that compute the others, among them that
    of a convolution's down, round to `dtype`.

    The network's parameters become views of `master`; they are saved, loaded and read as before. Convolution weights
    are stored channels-last, like the UNet's, so that no step converts them.
    """

    def __init__(self, network: AdaptorNetwork, dtype: torch.dtype):
        parameters = _in_memory_order(network)
        master = torch.cat([_memory_order(p.detach()).flatten() for p in parameters])
        self.master = nn.Parameter(master)
        self.shared = master.new_zeros(len(master) + 1)
        self.master.grad = self.shared[:-1]
        for parameter, view in zip(parameters, _views(master, parameters), strict=True):
            parameter.data = view
        self._copy = None
        self._leaves: list[Tensor] = parameters
        if dtype != master.dtype:
            self._copy = torch.empty_like(master, dtype=dtype)
            self._leaves = [v.requires_grad_() for v in _views(self._copy, parameters)]
        self._views = _views(self.master.grad, parameters)
        self._sink = GradientSink(list(zip(self._leaves, self._views, strict=True)))
        leaf_of = {id(p): leaf for p, leaf in zip(parameters, self._leaves, strict=True)}
        for adaptor in network.adaptors:
            adaptor.use_buffers({name: leaf_of[id(p)] for name, p in adaptor.named_parameters()}, self._sink)
        self._duplicates = [pair for adaptor in network.adaptors for pair in adaptor.duplicates()]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Updates the copies. Call it whenever `master` has changed."""
        if self._copy is not None:
            self._copy.copy_(self.master)
        if self._duplicates:
            torch._foreach_copy_(*map(list, zip(*self._duplicates, strict=True)))

    @torch.no_grad()
    def gather_gradients(self) -> None:
        """Moves the gradients of a backward pass to `master.grad`."""
        in_place = self._sink.finish()
        views, grads = [], []
        for leaf, view in zip(self._leaves, self._views, strict=True):
            if id(leaf) in in_place:
                if leaf.grad is not None:  # the layer ran in both ways
                    view.add_(leaf.grad)
            elif leaf.grad is None:
                view.zero_()
            else:
                views.append(view)
                grads.append(leaf.grad)
            leaf.grad = None
        if views:
            torch._foreach_copy_(views, grads)

    def drop_gradients(self) -> None:
        """Discards the gradients of a backward pass, even of one that was interrupted."""
        self._sink.finish()
        for leaf in self._leaves:
            leaf.grad = None


def _in_memory_order(network: AdaptorNetwork) -> list[nn.Parameter]:
    """All weights of one kind before the next, downs before ups, so that `stacked` need not copy neighbouring ones."""
    adaptors = [dict(a.named_parameters()) for a in network.adaptors]
    kinds = dict.fromkeys(name for found in adaptors for name in found)
    return [found[kind] for kind in kinds for found in adaptors if kind in found]


def _memory_order(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def _views(flat: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Views of `flat` in the parameters' shapes."""
    pieces = flat.split([p.numel() for p in parameters])
    return [
        piece.view(_memory_order(p).shape).permute(0, 3, 1, 2) if p.ndim == 4 else piece.view(p.shape)
        for piece, p in zip(pieces, parameters, strict=True)
    ]
