"""Attention entropy and its lower bound, from queries and keys (Zhai et al., 2023, Theorem 3.1)."""

import torch
from torch import Tensor

from sigma_fairseq.reparam.effective_weight import at_least_fp32

#: Attention probabilities held at a time. It bounds memory, which is otherwise quadratic in the
#: length of a sequence; larger than this does not make it faster.
BLOCK_ELEMENTS = 2**22


def attention_entropy(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Entropy of every query's attention, -Σⱼ Aᵢⱼ log Aᵢⱼ with A = softmax(scale·QKᵀ + mask).

    Computed in fp32 or wider, a block of queries at a time: memory is linear in both lengths.

    Args:
        query: (..., queries, head dimension).
        key: (..., keys, head dimension), the same leading dimensions.
        mask: added to the logits (-inf: not seen) or, if boolean, False where a key is not seen;
            broadcasts to (..., queries, keys).
        scale: of the logits, 1/√(head dimension) divided by the temperature.

    Returns:
        (..., queries), in nats; NaN for a query that sees no key.
    """
    rows = query.shape[-2]
    block = max(1, BLOCK_ELEMENTS * rows // max(1, query[..., 0].numel() * key.shape[-2]))
    entropies = []
    with torch.autocast(query.device.type, enabled=False):
        transposed = at_least_fp32(key).mT * scale
        for start in range(0, rows, block):
            logits = at_least_fp32(query[..., start : start + block, :]) @ transposed
            if mask is not None:
                part = mask if mask.shape[-2] == 1 else mask[..., start : start + block, :]
                if part.dtype == torch.bool:
                    logits.masked_fill_(~part, -torch.inf)
                else:
                    logits += part
            entropies.append(torch.special.entr(logits.softmax(-1)).sum(-1))
    return torch.cat(entropies, -1)


def visible_keys(mask: Tensor | None, keys: int, like: Tensor) -> Tensor:
    """Number of keys each query sees.

    Args:
        mask: as for `attention_entropy`.
        keys: number of keys.
        like: gives dtype and device of the result.

    Returns:
        The mask's shape without its last dimension, or a scalar without a mask.
    """
    if mask is None:
        return like.new_tensor(float(keys))
    seen = mask if mask.dtype == torch.bool else mask > -torch.inf
    return seen.expand(*seen.shape[:-1], keys).sum(-1).to(like.dtype)


def entropy_lower_bound(logit_bound: Tensor, keys: Tensor) -> Tensor:
    """Theorem 3.1: the least entropy of a softmax over T logits of norm at most s.

    log(1 + (T-1)β) + s·√(T(T-1))·β / (1 + (T-1)β) with β = exp(-s·√(T/(T-1))). It is reached by
    one logit at s·√((T-1)/T) and T-1 equal ones that make the sum zero.

    Args:
        logit_bound: s, the theorem's σ·σₓ times the scale of the logits.
        keys: T, broadcasts with s.

    Returns:
        Nats; 0 for a single key.
    """
    others = (keys - 1).clamp(min=1)
    beta = torch.exp(-logit_bound * ((others + 1) / others).sqrt())
    weight = 1 + others * beta
    bound = weight.log() + logit_bound * ((others + 1) * others).sqrt() * beta / weight
    return torch.where(keys > 1, bound, 0)


def spectral_norm_from_above(matrix: Tensor, squarings: int = 4) -> Tensor:
    """The least upper bound of ‖X‖₂ that so many products of XXᵀ with itself give.

    ‖(XXᵀ)ⁿ‖_F^(1/2n) with n = 2^squarings, the Schatten norm of order 4n: never below ‖X‖₂, which
    a lower bound of entropy needs, and with r equal singular values too large by r^(1/4n), 3 % at
    r = 8. An iteration on vectors would come from below.

    Args:
        matrix: X, (..., rows, columns).

    Returns:
        (...), fp32 or wider.
    """
    x = at_least_fp32(matrix)
    with torch.autocast(x.device.type, enabled=False):
        power = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
        norm = torch.linalg.matrix_norm(power)
        log = norm.log()
        for squaring in range(squarings):
            power = power / norm.clamp(min=torch.finfo(norm.dtype).tiny)[..., None, None]
            power = power @ power
            norm = torch.linalg.matrix_norm(power)
            log = log + norm.log() / 2 ** (squaring + 1)
    return (log / 2).exp()
