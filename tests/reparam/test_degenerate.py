"""γ and σ that are 0, below it, or no numbers are named."""

import pytest
import torch
from torch import nn

from sigma_fairseq.reparam import convert, find_degenerate, power_iteration, sigma_norms


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(4, 5), nn.MultiheadAttention(8, 2), nn.Conv1d(3, 4, 2)))


def test_a_sound_model_has_none(model: nn.Module) -> None:
    power_iteration(model)
    assert find_degenerate(model) == []
    assert find_degenerate(nn.Linear(2, 2)) == []


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0"), (-0.5, "-0.5"), (torch.nan, "nan")])
def test_gamma(model: nn.Module, value: float, shown: str) -> None:
    norm, _ = list(sigma_norms(model))[-1]
    norm.gamma.data.fill_(value)
    assert find_degenerate(model) == [f"γ of 2.weight is {shown}"]


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_sigma(model: nn.Module, value: float) -> None:
    _, (weight,) = next(sigma_norms(model))
    weight.data.fill_(value)
    power_iteration(model)
    assert find_degenerate(model) == ["σ of 0.weight is 0 or no number"]


def test_joint_weights_are_named_together() -> None:
    attention = nn.MultiheadAttention(4, 2, kdim=4, vdim=3)
    convert(attention, qkv="qk")
    for norm, _ in sigma_norms(attention):
        norm.gamma.data.fill_(-1)
    assert "γ of q_proj_weight, k_proj_weight is -1" in find_degenerate(attention)
