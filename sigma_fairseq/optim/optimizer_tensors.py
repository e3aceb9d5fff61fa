"""Where an optimizer of fairseq holds a model's parameters: themselves, or fp32 copies of them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer


class Slice(NamedTuple):
    """One parameter inside a tensor that an optimizer holds.

    Attributes:
        tensor: what the optimizer holds.
        start: first element of the parameter in the flattened tensor.
        stop: one after its last.
    """

    tensor: Tensor
    start: int
    stop: int

    def value(self) -> Tensor:
        """A flat view of the parameter's elements."""
        return self.tensor.data.view(-1)[self.start : self.stop]

    def gradient(self) -> Tensor | None:
        """A flat view of its gradient, None without one."""
        gradient = self.tensor.grad
        return None if gradient is None else gradient.reshape(-1)[self.start : self.stop]


def locate(optimizer: Optimizer, model: nn.Module) -> dict[int, Slice]:
    """Finds a model's parameters in an optimizer.

    Args:
        optimizer: holds parameters of the model, all or some of them; or, in the model's order,
            fp32 copies of all that need gradients (fairseq's `--fp16`, flattened or not), and
            after them what else is trained.
        model: the model.

    Returns:
        `id` of a parameter → its place; empty if the optimizer is not the model's, or holds its
        parameters in another way.
    """
    held = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = {id(parameter) for parameter in own}
    places = {id(p): Slice(p, 0, p.numel()) for p in held if id(p) in ids}
    return places or _copies(held, own)


def _copies(held: list[Tensor], own: list[nn.Parameter]) -> dict[int, Slice]:
    # Both are the same numbers in the same order, cut differently.
    places: dict[int, Slice] = {}
    position, cursor = 0, 0
    for parameter in own:
        while position < len(held) and cursor == held[position].numel():
            position, cursor = position + 1, 0
        stop = cursor + parameter.numel()
        if position == len(held) or stop > held[position].numel():
            return {}
        place = Slice(held[position], cursor, stop)
        value = place.value()
        if not torch.equal(value, parameter.data.view(-1).to(value.dtype)):
            return {}
        places[id(parameter)] = place
        cursor = stop
    return places
