"""`nn.Linear` and `nn.Conv1d` with σReparam built in."""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from sigma_fairseq.reparam.sigma_norm import (
    Gamma,
    SigmaNorm,
    original,
    reparameterize,
    sigma_norms,
)


def init_truncated_normal_(weight: Tensor, bias: Tensor | None, std: float) -> None:
    """Draws `weight` from a normal of the given std cut off at ±2, and sets `bias` to zero."""
    if std < 0.25:
        # The cut lies beyond eight std: no draw ever meets it, and without it drawing takes two
        # thirds of the time, which is most of the time of building a large model.
        nn.init.normal_(weight, std=std)
    else:
        nn.init.trunc_normal_(weight, std=std)
    if bias is not None:
        nn.init.zeros_(bias)


class _SigmaLayer(nn.Module):
    """What `SigmaLinear` and `SigmaConv1d` add to the plain layer they also inherit from."""

    def __init__(
        self, *args: Any, init_std: float = 0.1, gamma: Gamma = "one", **kwargs: Any
    ) -> None:
        # Before the plain layer's __init__, which ends by calling reset_parameters().
        self.init_std = init_std
        self.gamma_start = gamma
        super().__init__(*args, **kwargs)

    def reset_parameters(self) -> None:
        """Draws W anew and starts γ, u and v from it."""
        assert isinstance(self, nn.Linear | nn.Conv1d)
        if not parametrize.is_parametrized(self, "weight"):
            init_truncated_normal_(self.weight, self.bias, self.init_std)
            reparameterize((self, "weight"), gamma=self.gamma_start)
            return
        weight = original(self, "weight")
        init_truncated_normal_(weight, self.bias, self.init_std)
        ((norm, stack),) = sigma_norms(self)
        norm.load_state_dict(SigmaNorm(stack, self.gamma_start).state_dict())


class SigmaLinear(_SigmaLayer, nn.Linear):
    """y = x·Ŵᵀ + b with Ŵ = γ/σ(W)·W (Zhai et al., 2023, Eq. 2).

    Shapes: x (..., in_features) → y (..., out_features). `weight` reads Ŵ, (out_features,
    in_features); W itself is `parametrizations.weight.original`, and γ, u, v are the attributes of
    `parametrizations.weight[0]`, a `SigmaNorm`.

    Args:
        in_features, out_features, bias, device, dtype: as for `nn.Linear`.
        init_std: standard deviation of the truncated normal that W starts from; the bias starts at
            zero. The scale of W cancels in Ŵ; it sets how far a given learning rate turns W
            (Appendix I).
        gamma: "one", or "sigma" for γ = σ(W) at the start, so that Ŵ = W.

    Raises:
        ValueError: an unknown `gamma`.

    Example:
        >>> layer = SigmaLinear(512, 2048)
        >>> torch.linalg.matrix_norm(layer.weight, 2)  # γ = 1
        tensor(1.00...)
    """


class SigmaConv1d(_SigmaLayer, nn.Conv1d):
    """A 1-D convolution by Ŵ = γ/σ(W)·W, W (out, in/groups, width) read as a matrix (out, rest).

    Shapes: x (batch, in_channels, time) → y (batch, out_channels, time'), as for `nn.Conv1d`, whose
    arguments it takes, and `init_std` and `gamma` as in `SigmaLinear`.
    """
