"""SigmaLinear and SigmaConv1d: what they compute, keep and save."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sigma_fairseq.reparam import SigmaConv1d, SigmaLinear, power_iteration, sigma_norms
from sigma_fairseq.reparam.sigma_norm import original


def test_linear_is_a_linear_with_unit_spectral_norm() -> None:
    layer = SigmaLinear(6, 10)
    assert isinstance(layer, nn.Linear)
    assert float(torch.linalg.matrix_norm(layer.weight, 2)) == pytest.approx(1, rel=1e-4)
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_convolution_is_normalised_as_a_matrix() -> None:
    layer = SigmaConv1d(4, 6, 3, stride=2, padding=1)
    assert isinstance(layer, nn.Conv1d)
    raw = original(layer, "weight").detach()
    sigma = torch.linalg.svdvals(raw.reshape(6, 12).double())[0].float()
    x = torch.randn(2, 4, 9)
    wanted = F.conv1d(x, raw / sigma, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)


def test_gamma_can_start_at_sigma() -> None:
    layer = SigmaLinear(6, 10, gamma="sigma")
    torch.testing.assert_close(layer.weight, original(layer, "weight"))
    with pytest.raises(ValueError, match="gamma: 'two' is not one of 'one', 'sigma'"):
        SigmaLinear(6, 10, gamma="two")  # type: ignore[arg-type]


@pytest.mark.parametrize("std", [0.01, 0.1, 1.5])
def test_initialisation_is_a_truncated_normal(std: float) -> None:
    torch.manual_seed(0)
    layer = SigmaLinear(400, 400, init_std=std)
    raw = original(layer, "weight").detach()
    reference = nn.init.trunc_normal_(torch.empty(400, 400), std=std)
    assert float(raw.abs().max()) <= 2
    assert float(raw.std()) == pytest.approx(float(reference.std()), rel=0.02)
    assert float(raw.mean()) == pytest.approx(0, abs=0.02 * std)
    assert not layer.bias.any()


def test_resetting_starts_everything_anew() -> None:
    layer = SigmaLinear(6, 10)
    twin = copy.deepcopy(layer)
    before = layer.weight.detach().clone()
    parameters = [id(p) for p in layer.parameters()]
    layer.reset_parameters()
    assert parameters == [id(p) for p in layer.parameters()]
    assert not torch.equal(layer.weight, before)
    assert float(torch.linalg.matrix_norm(layer.weight, 2)) == pytest.approx(1, rel=1e-4)
    assert torch.equal(twin.weight, before)


def test_training_and_evaluation_change_no_state_and_see_one_sigma() -> None:
    layer = SigmaLinear(6, 10)
    original(layer, "weight").data += 0.1  # u, v are now behind
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    x = torch.randn(4, 6)
    outputs = [layer.train(mode)(x) for mode in (True, True, False, True)]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key
    power_iteration(layer)
    assert not torch.equal(layer(x), outputs[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_u_v_and_gamma_stay_fp32_when_the_model_is_narrowed(dtype: torch.dtype) -> None:
    layer = SigmaLinear(32, 48)
    (norm, _) = next(sigma_norms(layer))
    norm.gamma.data.fill_(1 / 3)
    before = [t.clone() for t in (norm.u, norm.v, norm.gamma.data)]
    layer.to(dtype)
    for tensor, old in zip((norm.u, norm.v, norm.gamma.data), before, strict=True):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, old)
    assert layer.weight.dtype == layer.bias.dtype == dtype
    layer.weight.float().sum().backward()
    assert norm.gamma.grad is not None
    assert norm.gamma.grad.dtype == torch.float32
    power_iteration(layer)
    assert norm.u.dtype == torch.float32
    layer.double()
    assert norm.u.dtype == norm.gamma.dtype == torch.float64


def test_state_holds_gamma_and_vectors_and_loads_strictly() -> None:
    layer, other = SigmaLinear(6, 10), SigmaLinear(6, 10)
    state = layer.state_dict()
    assert set(state) == {
        "bias",
        "parametrizations.weight.original",
        *(f"parametrizations.weight.0.{name}" for name in ("gamma", "u", "v", "subspace")),
    }
    other.load_state_dict(state)
    assert torch.equal(layer.weight, other.weight)
    missing = {key: value for key, value in state.items() if not key.endswith("gamma")}
    with pytest.raises(RuntimeError, match=r"Missing key.*parametrizations\.weight\.0\.gamma"):
        other.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*sigma"):
        other.load_state_dict({**state, "sigma": torch.ones(())})


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_a_state_of_one_vector_a_weight_is_taken_up(shape: tuple[int, int]) -> None:
    """As power iteration had, up to commit 9067373."""
    layer, other = SigmaLinear(*shape), SigmaLinear(*shape)
    power_iteration(layer, steps=20)
    old = {key: value for key, value in layer.state_dict().items() if "subspace" not in key}
    other.load_state_dict(old)
    assert not [key for key in old if "subspace" in key]
    assert torch.equal(layer.weight, other.weight)
    power_iteration(other)
    torch.testing.assert_close(layer.weight, other.weight, rtol=1e-4, atol=1e-6)
