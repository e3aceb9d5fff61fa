"""A learning rate of their own for single parameters, under any optimizer and precision of fairseq.

fairseq builds every optimizer over one list of parameters, sets one learning rate for all of its
groups, and under `--fp16` flattens the parameters into one fp32 vector, so parameter groups cannot
carry it. Its optimizers' steps are linear in the learning rate, so scaling the step a parameter
took is the same as scaling its rate; PyTorch's optimizer hooks are where to do so.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class LearningRateScale:
    """Multiplies the learning rate of some parameters of a model.

    Takes effect on the optimizer that holds the model's parameters, or fp32 copies of them in the
    model's order (fairseq's `--fp16`, flattened or not), and lasts as long as the model.

    Args:
        model: the model; the optimizer is expected to hold all its parameters that need gradients.
        parameters: those to scale.
        scale: the multiple, 0 or more.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor], scale: float) -> None:
        self.model = weakref.ref(model)
        self.parameters = list(parameters)
        self.scale = scale
        self.applied = False
        self._views: weakref.WeakKeyDictionary[Optimizer, list[Tensor] | None] = (
            weakref.WeakKeyDictionary()
        )
        self._before: tuple[Tensor, ...] = ()
        for handle in (
            register_optimizer_step_pre_hook(self._remember),
            register_optimizer_step_post_hook(self._rescale),
        ):
            weakref.finalize(model, handle.remove)

    def check_applied(self) -> None:
        """Call after an update.

        Raises:
            RuntimeError: no optimizer stepped that holds the model's parameters in a known way.
        """
        if not self.applied:
            raise RuntimeError(
                "--gamma-lr-scale: the optimizer holds the model's parameters in a way that is not "
                "known, so gamma's learning rate cannot be scaled; allowed: fairseq's optimizers "
                "in fp32, --amp, --fp16 and --memory-efficient-fp16, without sharding"
            )

    def _remember(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer not in self._views:
            self._views[optimizer] = self._find(optimizer)
        if views := self._views[optimizer]:
            self._before = torch._foreach_mul(views, 1.0)  # clones, in one operation

    @torch.no_grad()
    def _rescale(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if views := self._views.get(optimizer):
            scaled = torch._foreach_lerp(self._before, views, self.scale)
            torch._foreach_copy_(views, scaled)
            self.applied = True

    def _find(self, optimizer: Optimizer) -> list[Tensor] | None:
        """Views of the scaled parameters inside the tensors an optimizer holds; None: not ours."""
        model = self.model()
        assert model is not None
        held = [p.data for group in optimizer.param_groups for p in group["params"]]
        own = [p for p in model.parameters() if p.requires_grad]
        # Both are the same numbers in the same order, cut differently. A criterion's come after.
        wanted = {id(p) for p in self.parameters}
        views, position, cursor = [], 0, 0
        for parameter in own:
            while position < len(held) and cursor == held[position].numel():
                position, cursor = position + 1, 0
            size = parameter.numel()
            if position == len(held) or cursor + size > held[position].numel():
                return None
            view = held[position].view(-1)[cursor : cursor + size]
            if id(parameter) in wanted:
                if not torch.equal(view, parameter.data.view(-1).to(view.dtype)):
                    return None
                views.append(view)
            cursor += size
        return views
