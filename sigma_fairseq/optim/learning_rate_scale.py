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

from sigma_fairseq.optim.optimizer_tensors import locate


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
        self._views: weakref.WeakKeyDictionary[Optimizer, list[Tensor]]
        self._views = weakref.WeakKeyDictionary()
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

    def _find(self, optimizer: Optimizer) -> list[Tensor]:
        """Views of the scaled parameters inside the tensors an optimizer holds; none: not ours."""
        model = self.model()
        assert model is not None
        places = locate(optimizer, model)
        return [places[id(p)].value() for p in self.parameters if id(p) in places]
