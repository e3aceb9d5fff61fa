"""Translation: fairseq's transformer with a choice of norm placement and reparameterization.

An architecture is a row of `ARCHITECTURES` at a depth of `DEPTHS` (Tables 4 and 11: 6, 18, 50 and
100 layers in the encoder and in the decoder; width 512, FFN 2048, 8 heads).
"""

import dataclasses
from dataclasses import field
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.models.transformer import (
    TransformerConfig,
    TransformerEncoderBase,
    TransformerModelBase,
)
from torch import nn

from sigma_fairseq.layers import deepnorm
from sigma_fairseq.layers.transformer_layer import TransformerEncoderLayer, wrap_layer
from sigma_fairseq.models.architectures import register_architecture
from sigma_fairseq.models.decoder import TransformerDecoder
from sigma_fairseq.models.options import (
    StabilityConfig,
    check_bands,
    check_shared_output,
    transformer_config,
)
from sigma_fairseq.models.stable_model import StableModel

DEPTHS = (6, 18, 50, 100)
ARCHITECTURES: dict[str, dict[str, str]] = {
    "transformer_postln": {"norm": "postln"},
    "transformer_preln": {"norm": "preln"},
    "transformer_deepnorm": {"norm": "deepnorm"},
    "transformer_reparam_postln": {"norm": "postln", "reparam": "sigma"},
    "transformer_reparam_deepnorm": {"norm": "deepnorm", "reparam": "sigma"},
    "transformer_reparam_noln": {"norm": "noln", "reparam": "sigma"},
}


def _flat_transformer_fields() -> list[tuple[str, Any, Any]]:
    """fairseq's `TransformerConfig` with `encoder.layers` as `encoder_layers`, and so on.

    The nested config cannot be filled from a command line that names an architecture, which is why
    fairseq's own models by architecture have flat ones.
    """
    common = {f.name for f in dataclasses.fields(FairseqDataclass)}
    defaults = {
        "decoder_embed_dim": "${.encoder_embed_dim}",
        "decoder_ffn_embed_dim": "${.encoder_ffn_embed_dim}",
        "decoder_input_dim": "${.decoder_embed_dim}",
        "decoder_output_dim": "${.decoder_embed_dim}",
    }
    flat = []
    for outer in dataclasses.fields(TransformerConfig):
        nested = dataclasses.is_dataclass(outer.type)
        for inner in dataclasses.fields(outer.type) if nested else [outer]:  # type: ignore[arg-type]
            if inner.name in common:
                continue
            name = f"{outer.name}_{inner.name}" if nested else inner.name
            metadata = dict(inner.metadata)
            if nested:
                metadata["help"] = f"{outer.name}: {metadata.get('help', inner.name)}"
            # fairseq declares layers_to_keep a list of int and reads it as a string, "0,2,4".
            kind = Optional[str] if inner.name == "layers_to_keep" else inner.type  # noqa: UP045
            default = defaults.get(name, inner.default)
            flat.append((name, kind, field(default=default, metadata=metadata)))
    return flat


TranslationConfig = dataclasses.make_dataclass(
    "TranslationConfig", _flat_transformer_fields(), bases=(StabilityConfig,)
)


class TranslationEncoder(TransformerEncoderBase):
    """fairseq's encoder of our layers."""

    def build_encoder_layer(self, cfg: Any) -> nn.Module:
        layer = TransformerEncoderLayer(cfg, cfg.encoder.deepnorm, return_fc=self.return_fc)
        return wrap_layer(layer, cfg)


class TranslationModel(StableModel, TransformerModelBase):
    """fairseq's transformer with the options of `StabilityConfig`.

    Shapes: source tokens (batch, source length) and previous output tokens (batch, target length)
    → logits (batch, target length, vocabulary), as in fairseq.
    """

    @classmethod
    def add_args(cls, parser: Any) -> None:
        # fairseq's transformer overrides this for its nested config; ours is flat.
        super(TransformerModelBase, cls).add_args(parser)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "TranslationModel":
        """Builds the model of a config and task.

        Raises:
            ValueError: options that contradict each other, in one line.
        """
        _check_options(cfg, len(task.target_dictionary))
        nested = transformer_config(cfg)
        nested.encoder.deepnorm = nested.decoder.deepnorm = None
        if nested.norm == "deepnorm":
            # From the depth of training, which pruning by layers_to_keep leaves as it is.
            nested.encoder.deepnorm, nested.decoder.deepnorm = deepnorm.encoder_decoder(
                nested.encoder.layers, nested.decoder.layers
            )
        model: TranslationModel = super().build_model(nested, task)
        model.set_options(cfg)
        return model

    @classmethod
    def build_encoder(cls, cfg: Any, src_dict: Any, embed_tokens: nn.Module) -> TranslationEncoder:
        return TranslationEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg: Any, tgt_dict: Any, embed_tokens: nn.Module) -> TransformerDecoder:
        return TransformerDecoder(
            cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention
        )


def _check_options(cfg: Any, words: int) -> None:
    if cfg.tie_adaptive_weights:
        raise ValueError("--tie-adaptive-weights needs adaptive input, which translation has not")
    check_shared_output(cfg, cfg.decoder_embed_dim)
    if cfg.adaptive_softmax_cutoff:
        check_bands(cfg, "adaptive_softmax", int(cfg.decoder_output_dim), words)
    if bool(cfg.encoder_layers_to_keep) != bool(cfg.decoder_layers_to_keep):
        # fairseq then leaves out every layer of the other stack as it loads a checkpoint.
        raise ValueError("--encoder-layers-to-keep and --decoder-layers-to-keep need each other")


for _name, _options in ARCHITECTURES.items():
    for _depth in DEPTHS:
        register_architecture(
            f"{_name}_{_depth}l",
            TranslationModel,
            TranslationConfig,
            {**_options, "encoder_layers": _depth, "decoder_layers": _depth},
        )
