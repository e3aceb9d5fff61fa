"""The effective weight and its gradient, against float64, autograd and finite differences."""

import pytest
import torch
from torch import Tensor

from sigma_fairseq.reparam import effective_weight, leading_singular_subspace


def stack_of(*rows: int, columns: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(rows))
    return [torch.randn(r, columns, generator=generator, dtype=dtype) for r in rows]


def by_definition(gamma: Tensor, u: Tensor, v: Tensor, stack: list[Tensor], index: int) -> Tensor:
    sigma = u @ torch.cat(stack) @ v
    return gamma / sigma * stack[index]


@pytest.mark.parametrize(("rows", "index"), [((4,), 0), ((4, 3), 1), ((2, 3, 4), 0)])
def test_value_and_gradients_equal_autograd_of_the_definition(
    rows: tuple[int, ...], index: int
) -> None:
    stack = [w.requires_grad_() for w in stack_of(*rows)]
    gamma = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    u, v, _ = leading_singular_subspace(torch.cat(stack).detach())
    upstream = torch.randn(stack[index].shape, dtype=torch.float64)

    ours = effective_weight(gamma, u, v, stack, index)
    plain = by_definition(gamma, u, v, stack, index)
    torch.testing.assert_close(ours, plain)
    inputs = [gamma, *stack]
    for got, wanted in zip(
        torch.autograd.grad((ours * upstream).sum(), inputs),
        torch.autograd.grad((plain * upstream).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_gradient_is_the_published_formula() -> None:
    (weight,) = (w.requires_grad_() for w in stack_of(6))
    gamma = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    left, values, right = torch.linalg.svd(weight.detach())
    u, v, sigma = left[:, 0], right[0], values[0]
    upstream = torch.randn_like(weight)
    (effective_weight(gamma, u, v, [weight]) * upstream).sum().backward()

    inner = (upstream * weight.detach()).sum()
    wanted = gamma.detach() / sigma * (upstream - inner / sigma * torch.outer(u, v))
    torch.testing.assert_close(weight.grad, wanted)
    torch.testing.assert_close(gamma.grad, inner / sigma)


@pytest.mark.parametrize(("rows", "index"), [((4,), 0), ((3, 2), 1)])
def test_first_and_second_derivatives_by_finite_differences(
    rows: tuple[int, ...], index: int
) -> None:
    stack = [w.requires_grad_() for w in stack_of(*rows, columns=3)]
    gamma = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    u, v, _ = leading_singular_subspace(torch.cat(stack).detach())

    def function(gamma: Tensor, *stack: Tensor) -> Tensor:
        return effective_weight(gamma, u, v, stack, index)

    assert torch.autograd.gradcheck(function, (gamma, *stack))
    assert torch.autograd.gradgradcheck(function, (gamma, *stack))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_multiplied_in_fp32(dtype: torch.dtype) -> None:
    weight = stack_of(64, columns=48)[0].to(dtype)
    u, v, _ = leading_singular_subspace(weight.float())
    gamma = torch.tensor(1.1)
    wide = by_definition(gamma.double(), u.double(), v.double(), [weight.double()], 0)
    ours = effective_weight(gamma, u, v, [weight])
    assert ours.dtype == dtype
    # The only rounding to the narrow type is the last one.
    torch.testing.assert_close(ours, wide.float().to(dtype), rtol=0, atol=0)


def test_autocast_does_not_reach_it() -> None:
    weight = stack_of(64, columns=48)[0].float().requires_grad_()
    u, v, _ = leading_singular_subspace(weight.detach())
    gamma = torch.tensor(1.0, requires_grad=True)

    def run() -> tuple[Tensor, Tensor]:
        out = effective_weight(gamma, u, v, [weight])
        return out, torch.autograd.grad(out.square().sum(), weight)[0]

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run()
    for a, b in zip(plain, inside, strict=True):
        assert torch.equal(a, b)


def test_a_zero_matrix_stays_zero() -> None:
    weight = torch.zeros(3, 4, requires_grad=True)
    u, v, _ = leading_singular_subspace(weight.detach())
    out = effective_weight(torch.tensor(1.0), u, v, [weight])
    assert torch.equal(out, torch.zeros(3, 4))
    out.sum().backward()
    assert torch.isfinite(weight.grad).all()
