"""All weights of a network as one tensor, so that optimizer, gradient norm and average take one kernel each."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sliders.adaptors.network import AdaptorNetwork


class FlatLayout:
    """Where each of a network's parameters lies in a tensor of all of them: all of one kind before the next, downs before ups.

    Convolution weights are channels-last, like the denoiser's, so that no step converts them.
    """

    def __init__(self, network: AdaptorNetwork):
        adaptors = [dict(a.named_parameters()) for a in network.adaptors]
        kinds = dict.fromkeys(name for found in adaptors for name in found)
        self.parameters = [found[kind] for kind in kinds for found in adaptors if kind in found]
        self._sizes = [p.numel() for p in self.parameters]
        self._index_of = {id(p): index for index, p in enumerate(self.parameters)}

    def flattened(self) -> Tensor:
        """A new tensor of all parameters' values, [n] float32."""
        return torch.cat([_rows_dense(p.detach()).flatten() for p in self.parameters])

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views of `flat`, in the parameters' shapes and order."""
        pieces = zip(flat.split(self._sizes), self.parameters, strict=True)
        return [_shaped(piece, _rows_dense(p).shape) for piece, p in pieces]

    def block(self, flat: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The view of `flat` for parameters of one shape [n, …], below each other: [parameters · n, …].

        They must be of one kind, and of adaptors that follow each other in the network.
        """
        indexes = self.indexes(parameters)
        if indexes != list(range(indexes[0], indexes[0] + len(indexes))):
            raise ValueError("these weights do not lie next to each other")
        start, size = sum(self._sizes[: indexes[0]]), sum(self._sizes[i] for i in indexes)
        rows, *rest = _rows_dense(parameters[0]).shape
        return _shaped(flat[start : start + size], (rows * len(parameters), *rest))

    def indexes(self, parameters: Sequence[nn.Parameter]) -> list[int]:
        return [self._index_of[id(p)] for p in parameters]


class FlatWeights:
    """`master` [n] float32 and its gradient.

    `shared` [n + 1] float32 is the gradient and room for the loss: what several processes average, as one tensor.

    The network's parameters become views of `master`; they are saved, loaded and read as before.
    """

    def __init__(self, network: AdaptorNetwork, trains: bool = True):
        """trains: False leaves out the gradient."""
        self.layout = FlatLayout(network)
        self.master = nn.Parameter(self.layout.flattened(), requires_grad=trains)
        for parameter, view in zip(self.layout.parameters, self.layout.views(self.master.detach()), strict=True):
            parameter.data = view
        self.leaves: list[Tensor] = self.layout.parameters  # what autograd leaves the gradients on
        if trains:
            self.shared = self.master.new_zeros(len(self.master) + 1).detach()
            self.master.grad = self.shared[:-1]
            self._gradients = self.layout.views(self.master.grad)

    def refresh(self) -> None:
        """Updates copies of the weights, if there are any. Call it whenever `master` has changed."""

    def gather_gradients(self) -> None:
        """Moves the gradients of a backward pass to `master.grad`."""
        self._gather(frozenset())

    @torch.no_grad()
    def _gather(self, written: frozenset[int]) -> None:
        """written: the indexes of the weights whose gradients are there already."""
        views, grads = [], []
        for index, (leaf, view) in enumerate(zip(self.leaves, self._gradients, strict=True)):
            if index in written:
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
        for leaf in self.leaves:
            leaf.grad = None


def _rows_dense(tensor: Tensor) -> Tensor:
    """[n, …], with a convolution's channels last."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def _shaped(piece: Tensor, shape: Sequence[int]) -> Tensor:
    """A piece of a flat tensor in the shape that `_rows_dense` returned, with a convolution's channels second again."""
    view = piece.view(tuple(shape))
    return view.permute(0, 3, 1, 2) if view.ndim == 4 else view
