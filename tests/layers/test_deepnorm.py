"""The constants of DeepNorm, against values worked out by hand and against torchscale."""

import pytest
from torchscale.architecture.config import EncoderDecoderConfig
from torchscale.architecture.encoder_decoder import EncoderDecoder

from sigma_fairseq.layers import deepnorm


@pytest.mark.parametrize(
    ("encoder_layers", "decoder_layers", "encoder", "decoder"),
    [
        # N = M: (N⁵)^(1/16); 0.81·6^(5/16) = 1.4179…, 0.87/6^(5/16) = 0.4970…, 18^¼, 72^−¼
        (6, 6, (1.41793, 0.49699), (2.05977, 0.34330)),
        # 0.81·100^(5/16) = 3.4157…, 300^¼, 1200^−¼
        (100, 100, (3.41574, 0.20631), (4.16179, 0.16991)),
    ],
)
def test_published_constants(
    encoder_layers: int,
    decoder_layers: int,
    encoder: tuple[float, float],
    decoder: tuple[float, float],
) -> None:
    got = deepnorm.encoder_decoder(encoder_layers, decoder_layers)
    assert got[0] == pytest.approx(encoder, rel=1e-4)
    assert got[1] == pytest.approx(decoder, rel=1e-4)


def test_single_stack() -> None:
    # (2·36)^¼ and (8·36)^−¼
    assert deepnorm.single_stack(36) == pytest.approx((2.91295, 0.24275), rel=1e-4)


@pytest.mark.parametrize(("encoder_layers", "decoder_layers"), [(2, 2), (3, 1), (1, 4)])
def test_torchscale_scales_its_residuals_alike(encoder_layers: int, decoder_layers: int) -> None:
    config = EncoderDecoderConfig(
        vocab_size=10,
        encoder_embed_dim=8,
        decoder_embed_dim=8,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_embed_dim=8,
        decoder_ffn_embed_dim=8,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        deepnorm=True,
    )
    theirs = EncoderDecoder(config)
    encoder, decoder = deepnorm.encoder_decoder(encoder_layers, decoder_layers)
    assert theirs.encoder.layers[0].alpha == pytest.approx(encoder.alpha)
    assert theirs.decoder.layers[0].alpha == pytest.approx(decoder.alpha)
