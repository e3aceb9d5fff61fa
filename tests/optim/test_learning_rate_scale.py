"""γ's own learning rate, against the same optimizer with parameter groups."""

import gc
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq.optim import build_optimizer
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks

from sigma_fairseq.optim.learning_rate_scale import LearningRateScale
from sigma_fairseq.reparam import SigmaLinear, sigma_norms

SCALE = 2.5
CONFIGS: dict[str, dict[str, Any]] = {
    "adam": {
        "adam_betas": "(0.9, 0.98)",
        "adam_eps": 1e-8,
        "weight_decay": 0.1,
        "use_old_adam": True,
        "fp16_adam_stats": False,
        "tpu": False,
    },
    "adagrad": {"weight_decay": 0.1},
    "nag": {"momentum": 0.9, "weight_decay": 0.1},
    "sgd": {"momentum": 0.9, "weight_decay": 0.1},
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(SigmaLinear(5, 6), nn.ReLU(), SigmaLinear(6, 3))


def gammas(model: nn.Module) -> list[Tensor]:
    return [norm.gamma for norm, _ in sigma_norms(model)]


def make_optimizer(name: str, params: list[Tensor]) -> Any:
    options = {"lr": [0.05], **CONFIGS[name]}
    if name == "adagrad":  # without a config dataclass in fairseq
        return build_optimizer(Namespace(optimizer=name, **options), params)
    return build_optimizer(OmegaConf.create({"_name": name, **options}), params)


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


@pytest.fixture(params=CONFIGS)
def reference(request: pytest.FixtureRequest) -> tuple[str, list[Tensor]]:
    """The name of an optimizer, and the parameters after 4 steps with a rate of γ's own."""
    model = make_model()
    optimizer = make_optimizer(request.param, list(model.parameters()))
    (group,) = optimizer.optimizer.param_groups
    own = {id(p) for p in gammas(model)}
    scaled = {**group, "params": [p for p in group["params"] if id(p) in own]}
    group["params"] = [p for p in group["params"] if id(p) not in own]
    optimizer.optimizer.param_groups.append(scaled)
    for step in range(4):
        rate = 0.05 / (step + 1)  # as a scheduler would
        for g, factor in zip(optimizer.param_groups, (1, SCALE), strict=True):
            g["lr"] = rate * factor
            if step == 0 and "lr_old" in g:
                g["lr_old"] = rate * factor
        for parameter, gradient in zip(model.parameters(), gradients(model, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return request.param, [p.detach().clone() for p in model.parameters()]


def check_run(name: str, wanted: list[Tensor], held: Callable[[nn.Module], list[Tensor]]) -> None:
    """Four steps of an optimizer over `held(model)`: the parameters, or copies of them."""
    model = make_model()
    scale = LearningRateScale(model, gammas(model), SCALE)
    params = held(model)
    optimizer = make_optimizer(name, params)
    for step in range(4):
        optimizer.set_lr(0.05 / (step + 1))
        flat = torch.cat([g.flatten() for g in gradients(model, step)])
        for p, g in zip(params, flat.split([p.numel() for p in params]), strict=True):
            p.grad = g.view_as(p).clone()
        optimizer.step()
        copied = torch.cat([p.detach().flatten() for p in params])
        sizes = [p.numel() for p in model.parameters()]
        for p, value in zip(model.parameters(), copied.split(sizes), strict=True):
            p.data.copy_(value.view_as(p))
    scale.check_applied()
    for got, expected in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(got.detach(), expected)


def test_parameters_themselves(reference: tuple[str, list[Tensor]]) -> None:
    check_run(*reference, held=lambda model: list(model.parameters()))


def test_fp32_copies(reference: tuple[str, list[Tensor]]) -> None:
    """As under --fp16 --fp16-no-flatten-grads."""
    check_run(
        *reference,
        held=lambda model: [nn.Parameter(p.detach().clone()) for p in model.parameters()],
    )


def test_a_flat_fp32_copy(reference: tuple[str, list[Tensor]]) -> None:
    """As under --fp16."""
    check_run(
        *reference,
        held=lambda model: [
            nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
        ],
    )


def test_other_optimizers_are_left_alone_and_missing_ones_reported() -> None:
    model, other = make_model(), nn.Linear(3, 3)
    scale = LearningRateScale(model, gammas(model), SCALE)
    optimizer = torch.optim.SGD(other.parameters(), lr=1.0)
    before = other.weight.detach().clone()
    other.weight.grad = torch.ones(3, 3)
    optimizer.step()
    torch.testing.assert_close(other.weight.detach(), before - 1)
    with pytest.raises(RuntimeError, match="--gamma-lr-scale: the optimizer holds"):
        scale.check_applied()


def test_it_ends_with_the_model() -> None:
    model = make_model()
    gc.collect()  # models of other tests, which may have hooks too
    before = len(_global_optimizer_post_hooks)
    LearningRateScale(model, gammas(model), SCALE)
    assert len(_global_optimizer_post_hooks) == before + 1
    del model
    gc.collect()
    assert len(_global_optimizer_post_hooks) == before
