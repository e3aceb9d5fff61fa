"""σReparam in plain PyTorch: Ŵ = γ/σ(W)·W (Zhai et al., ICML 2023, Eq. 2). Imports no fairseq.

Example:
    >>> model = convert(nn.TransformerEncoder(...), gamma="sigma")  # computes what it did before
    >>> for batch in batches:
    ...     power_iteration(model)  # once an optimizer update, before the forward pass
    ...     loss(model(batch)).backward()
    ...     optimizer.step()
    >>> fuse(model)  # plain layers again
"""

from sigma_fairseq.reparam.convert import convert, fuse
from sigma_fairseq.reparam.degenerate import find_degenerate
from sigma_fairseq.reparam.effective_weight import effective_weight, spectral_norm_estimate
from sigma_fairseq.reparam.layer_weights import LayerWeights, Pack
from sigma_fairseq.reparam.layers import SigmaConv1d, SigmaLinear
from sigma_fairseq.reparam.power_iteration import PowerIteration, power_iteration
from sigma_fairseq.reparam.sigma_norm import (
    SigmaNorm,
    reparameterize,
    restore_vectors,
    sigma_norms,
    sigma_stacks,
)
from sigma_fairseq.reparam.singular_vectors import leading_singular_subspace

__all__ = [
    "LayerWeights",
    "Pack",
    "PowerIteration",
    "SigmaConv1d",
    "SigmaLinear",
    "SigmaNorm",
    "convert",
    "effective_weight",
    "find_degenerate",
    "fuse",
    "leading_singular_subspace",
    "power_iteration",
    "reparameterize",
    "restore_vectors",
    "sigma_norms",
    "sigma_stacks",
    "spectral_norm_estimate",
]
