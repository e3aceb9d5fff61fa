"""The effective weight Ŵ = γ/σ(W)·W (Eq. 2) and its exact gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

#: A σ up to this counts as 1: a zero matrix stays zero and has the gradient of a plain one times γ.
#: Power iteration takes fourth powers of it, so that much less would be beyond fp32.
EPSILON = 1e-7


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or as it is where wider: what all arithmetic of the method runs in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def spectral_norm_estimate(u: Tensor, v: Tensor, *stack: Tensor) -> Tensor:
    """σ ≈ uᵀWv of the matrix whose row blocks are `stack`.

    Args:
        u: left singular vector of the stacked matrix, shape (sum of the blocks' rows,).
        v: right singular vector, shape (columns,).
        stack: matrices, each (rows, columns); any dtype, computed in fp32 or wider.

    Returns:
        A scalar tensor, above `EPSILON`; 1 of a matrix whose σ is not.
    """
    blocks = u.split([len(block) for block in stack])
    terms = [
        torch.dot(part, torch.mv(at_least_fp32(block), v))
        for part, block in zip(blocks, stack, strict=True)
    ]
    return F.threshold(sum(terms[1:], start=terms[0]), EPSILON, 1.0)


class _EffectiveWeight(torch.autograd.Function):
    """Ŵ of one row block of a stack, differentiable in γ and in every block (u, v are constants).

    With G = ∂L/∂Ŵ of block i:  ∂L/∂γ = ⟨G, Wᵢ⟩/σ,  ∂L/∂Wⱼ = [i = j]·γ/σ·G − γ/σ²·⟨G, Wᵢ⟩·uⱼvᵀ.
    """

    @staticmethod
    def forward(
        ctx: Any, index: int, gamma: Tensor, u: Tensor, v: Tensor, *stack: Tensor
    ) -> Tensor:
        sigma = spectral_norm_estimate(u, v, *stack)
        ctx.index = index
        ctx.save_for_backward(gamma, u, v, sigma, *stack)
        block = stack[index]
        return (at_least_fp32(block) * (gamma / sigma)).to(block.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gamma, u, v, sigma, *stack = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Second derivatives (Hessian-vector products) need σ as a function of W.
            sigma = spectral_norm_estimate(u, v, *stack)
        block = at_least_fp32(stack[ctx.index])
        grad = at_least_fp32(grads[0])
        scale = gamma / sigma
        inner = torch.dot(grad.flatten(), block.flatten())  # ⟨G, W⟩
        grad_gamma = inner / sigma
        pull = -scale * grad_gamma  # what σ's dependence on W takes back along uvᵀ
        grad_stack = []
        for i, (part, matrix) in enumerate(
            zip(u.split([len(block) for block in stack]), stack, strict=True)
        ):
            if i == ctx.index:
                grad_matrix = torch.addr(grad * scale, part * pull, v)
            else:
                grad_matrix = torch.outer(part * pull, v)
            grad_stack.append(grad_matrix.to(matrix.dtype))
        return None, grad_gamma, None, None, *grad_stack


def effective_weight(
    gamma: Tensor, u: Tensor, v: Tensor, stack: Sequence[Tensor], index: int = 0
) -> Tensor:
    """The effective weight Ŵ = γ/σ(W)·W (Eq. 2) of one row block of W.

    Args:
        gamma: the learned scale, a scalar.
        u: left singular vector of W, shape (rows of all blocks,). Receives no gradient.
        v: right singular vector of W, shape (columns,). Receives no gradient.
        stack: the row blocks of W, each (rows, columns); a single matrix is a stack of one.
        index: the block wanted.

    Returns:
        Ŵ of block `index`: its shape and dtype. Computed in fp32 or wider whatever that dtype,
        inside or outside autocast.
    """
    with torch.autocast(device_type=v.device.type, enabled=False):
        return _EffectiveWeight.apply(index, gamma, u, v, *stack)
