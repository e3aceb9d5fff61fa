"""γ and σ that are not what the method takes them for."""

import torch
from torch import nn

from sigma_fairseq.reparam.sigma_norm import sigma_stacks


@torch.no_grad()
def find_degenerate(model: nn.Module) -> list[str]:
    """Names the σReparam weights whose γ or σ is not a number above 0.

    A weight of σ = 0 gives Ŵ = 0, and one of γ < 0 what it gives with -γ, turned round; neither is
    an error, but nobody means to have one.

    Args:
        model: any module, at best after `power_iteration`.

    Returns:
        A line for each, empty for most models. Costs one look at the device's values.
    """
    found = list(sigma_stacks(model))
    if not found:
        return []
    gammas = torch.stack([norm.gamma for norm, _ in found])
    # Where W is zero, or no number, so is one of the vectors that power iteration makes of it.
    lengths = torch._foreach_norm([vector for norm, _ in found for vector in (norm.u, norm.v)])
    has_sigma = (torch.stack(lengths).view(-1, 2) > 0.5).all(1)
    names = {id(module): name for name, module in model.named_modules()}
    lines = []
    for (_, stack), gamma, positive in zip(found, gammas.tolist(), has_sigma.tolist(), strict=True):
        members = ", ".join(
            f"{names[id(module)]}.{tensor}".lstrip(".") for module, tensor in stack.members
        )
        if not gamma > 0:
            lines.append(f"γ of {members} is {gamma:.3g}")
        if not positive:
            lines.append(f"σ of {members} is 0 or no number")
    return lines
