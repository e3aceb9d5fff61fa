"""LARS: SGD with momentum whose rate is set for each tensor, so that no layer outruns another.

You, Gitman and Ginsburg, Large Batch Training of Convolutional Networks, 2017 (arXiv:1708.03888).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling. For each weight w with gradient g, from v = 0 on:

        ratio = η·‖w‖ / (‖g‖ + β·‖w‖ + ε), but 1 where ‖w‖ or ‖g‖ is 0
        v ← m·v + lr·ratio·(g + β·w)
        w ← w − v

    A gradient of any length thus moves w by lr·η of its own length, lr·η / (1 − m) in the long run.
    The rate is inside v, as in the paper: after the rate has changed, what v holds fades out at the
    old one. Implementations that extend `torch.optim.SGD` have it outside; while the rate is
    constant both are the same.

    Where gradients are orthogonal to w, as under σReparam, and no decay holds it, ‖w‖ grows: from
    uncorrelated gradients by about (lr·η / (1 − m))² / 2 of itself a step, 5e-5 at lr 1 and the
    defaults, but 2e-2 with η = 0.02, which is beyond fp32 after some thousand steps.

    Vectors, here all tensors with at most one dimension above 1 (biases, LayerNorms, γ, and weight
    norm's g of shape (out, 1)), have ratio 1 and no decay unless asked for. Parameters without a
    gradient are left as they are, and so is their v.

    Args:
        params: parameters in fp32 or wider, or groups of them with options of their own.
        lr: learning rate, 0 or more.
        momentum: m, from 0 to below 1.
        weight_decay: β, 0 or more.
        trust_coefficient: η, above 0. 0.001 is the paper's and that of most implementations.
        eps: ε, 0 or more.
        scale_vectors: whether vectors have a ratio too.
        decay_vectors: whether vectors have a decay too.

    Raises:
        ValueError: an option is out of its range, or a parameter is narrower than fp32: of steps
            as small as these, it would round most away.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        scale_vectors: bool = False,
        decay_vectors: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
            if not value >= 0:
                raise ValueError(f"LARS: {name} {value} is below 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"LARS: momentum {momentum} is not from 0 to below 1")
        if not trust_coefficient > 0:
            raise ValueError(f"LARS: trust_coefficient {trust_coefficient} is not above 0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "scale_vectors": scale_vectors,
            "decay_vectors": decay_vectors,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with options of their own.

        Raises:
            ValueError: a parameter is narrower than fp32.
        """
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype.itemsize < 4:
                raise ValueError(
                    f"LARS: {parameter.dtype} parameters would round its small steps away; "
                    "allowed: fp32, --amp, --bf16, --fp16 --fp16-no-flatten-grads"
                )

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Takes one step, after calling `closure` if there is one, and returns what it returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            weights = [p for p in trained if not _is_vector(p)]
            vectors = [p for p in trained if _is_vector(p)]
            decay = group["weight_decay"]
            vector_decay = decay if group["decay_vectors"] else 0.0
            self._update(group, weights, decay, scaled=True)
            self._update(group, vectors, vector_decay, scaled=group["scale_vectors"])
        return loss

    def _update(
        self, group: dict[str, Any], params: list[Tensor], decay: float, scaled: bool
    ) -> None:
        # v is kept as a·u, where a ← m·a + lr·ratio is a number and u, a mean of the gradients,
        # moves towards g + β·w by the share lr·ratio/a: one pass over memory less than with v.
        if not params:
            return
        gradients = [p.grad for p in params if p.grad is not None]
        means = [self._state(p)["mean_gradient"] for p in params]
        sums = [self._state(p)["rate_sum"] for p in params]
        ratios = _trust_ratios(group, params, gradients, decay) if scaled else 1.0
        rates = group["lr"] * ratios
        totals = group["momentum"] * torch.stack(sums) + rates
        shares = torch.where(totals > 0, rates / totals, 0.0)
        torch._foreach_lerp_(means, gradients, shares.unbind())
        if decay:
            torch._foreach_addcmul_(means, params, (shares * decay).unbind())
        torch._foreach_addcmul_(params, means, totals.unbind(), value=-1)
        torch._foreach_copy_(sums, totals.unbind())

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["mean_gradient"] = torch.zeros_like(parameter)
            state["rate_sum"] = parameter.new_zeros(())
        return state


def _is_vector(parameter: Tensor) -> bool:
    return sum(size > 1 for size in parameter.shape) <= 1


def _trust_ratios(
    group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], decay: float
) -> Tensor:
    """(weights,), on their device, so that nothing waits for it."""
    weight_norms = torch.stack(torch._foreach_norm(weights))
    gradient_norms = torch.stack(torch._foreach_norm(gradients))
    ratios = weight_norms / (gradient_norms + decay * weight_norms + group["eps"])
    defined = (weight_norms > 0) & (gradient_norms > 0)
    return torch.where(defined, group["trust_coefficient"] * ratios, 1.0)


@dataclass
class LarsConfig(FairseqDataclass):
    """LARS on the command line."""

    momentum: float = field(default=0.9, metadata={"help": "momentum factor"})
    weight_decay: float = field(
        default=0.0, metadata={"help": "weight decay, inside the trust ratio"}
    )
    trust_coefficient: float = field(
        default=0.001,
        metadata={
            "help": "length of an update, without momentum, as a share of the weight's and at "
            "learning rate 1 (You et al., 2017, and most implementations: 0.001; apex's LARC: 0.02)"
        },
    )
    lars_eps: float = field(
        default=1e-8, metadata={"help": "added to the length of the gradient in the trust ratio"}
    )
    lars_scale_vectors: bool = field(
        default=False,
        metadata={
            "help": "trust ratios also for vectors and scalars: biases, LayerNorms, gamma "
            "(default: plain SGD with momentum for them, as in most implementations)"
        },
    )
    lars_decay_vectors: bool = field(
        default=False,
        metadata={"help": "weight decay also for vectors and scalars (default: none for them)"},
    )
    lr: list[float] = field(default=II("optimization.lr"))


@register_optimizer("lars", dataclass=LarsConfig)
class FairseqLars(FairseqOptimizer):
    """`Lars` in fairseq.

    It needs each parameter as a tensor of its own: fairseq refuses it where parameters are
    flattened (`--fp16` without `--fp16-no-flatten-grads`, `--ddp-backend fully_sharded`).
    """

    def __init__(self, cfg: LarsConfig, params: list[Tensor]) -> None:
        super().__init__(cfg)
        self._optimizer = Lars(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Options of `Lars`, which replace those of a checkpoint when training is resumed."""
        return {
            "lr": self.cfg.lr[0],
            "momentum": self.cfg.momentum,
            "weight_decay": self.cfg.weight_decay,
            "trust_coefficient": self.cfg.trust_coefficient,
            "eps": self.cfg.lars_eps,
            "scale_vectors": self.cfg.lars_scale_vectors,
            "decay_vectors": self.cfg.lars_decay_vectors,
        }

    @property
    def supports_flat_params(self) -> bool:
        """No: a trust ratio is one tensor's."""
        return False
