"""The decoder of translation and language models: fairseq's, of our layers."""

from typing import Any

from fairseq.models.transformer import TransformerDecoderBase
from torch import nn

from sigma_fairseq.layers.transformer_layer import TransformerDecoderLayer, wrap_layer


class TransformerDecoder(TransformerDecoderBase):
    """fairseq's decoder of our layers; `cfg.decoder.deepnorm` has the constants, or None."""

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> nn.Module:
        layer = TransformerDecoderLayer(cfg, cfg.decoder.deepnorm, no_encoder_attn)
        return wrap_layer(layer, cfg)
