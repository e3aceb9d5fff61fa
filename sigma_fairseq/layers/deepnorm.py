"""DeepNorm: x ← LN(α·x + f(x)), with β in the initialisation of f (Wang et al., 2022)."""

from typing import NamedTuple


class DeepNorm(NamedTuple):
    """The two constants of one stack of layers.

    Attributes:
        alpha: factor of the residual x.
        beta: Xavier gain of the feed-forward, value and output projections (queries and keys: 1).
    """

    alpha: float
    beta: float


def encoder_decoder(encoder_layers: int, decoder_layers: int) -> tuple[DeepNorm, DeepNorm]:
    """Constants of an N-layer encoder and of its M-layer decoder.

    α = 0.81·(N⁴M)^(1/16), β = 0.87·(N⁴M)^(−1/16) in the encoder, α = (3M)^(1/4),
    β = (12M)^(−1/4) in the decoder.
    """
    depth = float(encoder_layers**4 * decoder_layers) ** (1 / 16)
    return (
        DeepNorm(0.81 * depth, 0.87 / depth),
        DeepNorm((3 * decoder_layers) ** 0.25, (12 * decoder_layers) ** -0.25),
    )


def single_stack(layers: int) -> DeepNorm:
    """Constants of an encoder or a decoder alone, L layers: α = (2L)^(1/4), β = (8L)^(−1/4)."""
    return DeepNorm((2 * layers) ** 0.25, (8 * layers) ** -0.25)
