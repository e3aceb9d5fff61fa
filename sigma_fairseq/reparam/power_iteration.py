"""Refreshes the singular vectors of a whole model: one batched step an optimizer update."""

from collections import defaultdict

import torch
from torch import Tensor, nn

from sigma_fairseq.reparam.effective_weight import at_least_fp32
from sigma_fairseq.reparam.sigma_norm import SigmaNorm, sigma_norms


def _unit(vector: Tensor, fallback: Tensor) -> Tensor:
    """Columns of unit length, (..., n, 1); `fallback` for a zero one, which could never recover."""
    length = torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
    return torch.where(length > 0, vector / length, fallback)


@torch.no_grad()
def power_iteration(model: nn.Module, steps: int = 1) -> None:
    """Refreshes u and v of every σReparam weight: v ← Wᵀu/‖Wᵀu‖, u ← Wv/‖Wv‖ (Algorithm 1).

    Call it once an optimizer update, before the forward pass, in training only. Weights of equal
    shape are treated as one batch, so the number of operations does not grow with depth. The
    fairseq models of this package do it themselves when fairseq announces an update.

    Args:
        model: any module; one without σReparam weights is left alone.
        steps: iterations; the paper uses one an update.
    """
    batches: dict[tuple[object, ...], list[tuple[SigmaNorm, list[Tensor]]]] = defaultdict(list)
    for norm, stack in sigma_norms(model):
        batches[len(norm.u), len(norm.v), norm.u.device, norm.u.dtype].append((norm, stack))
    for batch in batches.values():
        norms = [norm for norm, _ in batch]
        rows = torch.cat([block for _, stack in batch for block in stack])
        weights = at_least_fp32(rows).view(len(norms), -1, rows.shape[1])  # (n, rows, columns)
        u = torch.stack([norm.u for norm in norms]).unsqueeze(-1)  # (n, rows, 1)
        v = torch.stack([norm.v for norm in norms]).unsqueeze(-1)  # (n, columns, 1)
        with torch.autocast(device_type=u.device.type, enabled=False):
            for _ in range(steps):
                v = _unit(weights.mT @ u, v)
                u = _unit(weights @ v, u)
        torch._foreach_copy_([norm.u for norm in norms], list(u.squeeze(-1).unbind()))
        torch._foreach_copy_([norm.v for norm in norms], list(v.squeeze(-1).unbind()))
