"""Speech recognition: a deep CTC encoder over log-mel features (Appendix E).

An architecture is a row of `ARCHITECTURES` at a depth of `DEPTHS` (36 layers, and 72 of E.2; width
768, FFN 3072, 4 heads).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fairseq.models import FairseqEncoder, FairseqEncoderModel
from fairseq.modules import LayerNorm
from omegaconf import II
from torch import Tensor, nn

from sigma_fairseq.layers import deepnorm
from sigma_fairseq.layers.cape import CAPE
from sigma_fairseq.layers.front_end import STRIDE, ConvFrontEnd
from sigma_fairseq.layers.speech_layer import SpeechEncoderLayer
from sigma_fairseq.layers.transformer_layer import wrap_layer
from sigma_fairseq.models.architectures import register_architecture
from sigma_fairseq.models.options import StabilityConfig, transformer_config
from sigma_fairseq.models.stable_model import StableModel
from sigma_fairseq.reparam import SigmaLinear, convert

DEPTHS = (36, 72)
ARCHITECTURES: dict[str, dict[str, str]] = {
    "ctc_transformer_postln": {"norm": "postln"},
    "ctc_transformer_preln": {"norm": "preln"},
    # With Adagrad queries and keys share one σ; with LARS the values too (--reparam-qkv qkv).
    "ctc_transformer_reparam_postln": {"norm": "postln", "reparam": "sigma", "reparam_qkv": "qk"},
    "ctc_transformer_reparam_noln": {"norm": "noln", "reparam": "sigma", "reparam_qkv": "qk"},
}

#: Time from one frame of features to the next.
SECONDS_PER_FRAME = 0.01


@dataclass
class SpeechConfig(StabilityConfig):
    """The options of a speech model. Dropout is where the recipe that the paper follows has it."""

    encoder_layers: int = field(default=36, metadata={"help": "number of encoder layers"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "encoder embedding dimension"})
    encoder_ffn_embed_dim: int = field(
        default=3072, metadata={"help": "encoder embedding dimension for FFN"}
    )
    encoder_attention_heads: int = field(
        default=4, metadata={"help": "number of encoder attention heads"}
    )
    activation_fn: str = field(default="relu", metadata={"help": "activation of the FFN"})
    dropout_input: float = field(
        default=0.3, metadata={"help": "dropout after the convolutional front end"}
    )
    attention_dropout: float = field(default=0.3, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(
        default=0.3, metadata={"help": "dropout after the activation in the FFN"}
    )
    dropout: float = field(default=0.0, metadata={"help": "dropout of the residual branches"})
    encoder_layerdrop: float = field(
        default=0.3,
        metadata={
            "help": "probability that an update leaves out the residual branches of a layer: one "
            "draw a layer and update, the same for all micro-batches and workers"
        },
    )
    cape_global_shift: float = field(
        default=30.0,
        metadata={"help": "training moves the positions of an utterance by up to so many seconds"},
    )
    cape_local_shift: float = field(
        default=0.0,
        metadata={"help": "training moves the position of a frame by up to so many seconds"},
    )
    cape_max_scale: float = field(
        default=1.0,
        metadata={"help": "training stretches the positions of an utterance by up to this factor"},
    )
    reparam_conv: bool = field(
        default=False, metadata={"help": "reparameterize the convolution of the front end too"}
    )
    checkpoint_activations: bool = field(
        default=False,
        metadata={"help": "recompute a layer's activations in the backward pass: less memory"},
    )
    min_params_to_wrap: int = field(
        default=int(1e8),
        metadata={"help": "layers of fewer parameters are not sharded by themselves under FSDP"},
    )
    seed: int = II("common.seed")


class SpeechEncoder(FairseqEncoder):
    """Log-mel features → logits of letters.

    Args:
        cfg: fairseq's nested `TransformerConfig` with the fields of `SpeechConfig`.
        input_dim: features of a frame.
        dictionary: of the labels.
    """

    def __init__(self, cfg: Any, input_dim: int, dictionary: Any) -> None:
        super().__init__(dictionary)
        width = cfg.encoder.embed_dim
        self.layer_drop = cfg.encoder_layerdrop
        self.seed = cfg.seed
        reparam: Any = cfg.reparam if cfg.reparam_conv else "none"
        self.front_end = ConvFrontEnd(
            input_dim, width, cfg.dropout_input, reparam, cfg.reparam_init_std
        )
        self.positions = CAPE(
            STRIDE * SECONDS_PER_FRAME,
            cfg.cape_global_shift,
            cfg.cape_local_shift,
            cfg.cape_max_scale,
        )
        scaling = deepnorm.single_stack(cfg.encoder.layers) if cfg.norm == "deepnorm" else None
        self.layers = nn.ModuleList(
            wrap_layer(SpeechEncoderLayer(cfg, scaling), cfg) for _ in range(cfg.encoder.layers)
        )
        self.layer_norm = LayerNorm(width) if cfg.norm == "preln" else nn.Identity()
        self.output: nn.Module
        if cfg.reparam == "sigma":
            self.output = SigmaLinear(width, len(dictionary), init_std=cfg.reparam_init_std)
        else:
            self.output = convert(nn.Linear(width, len(dictionary)), reparam=cfg.reparam)

    def set_num_updates(self, num_updates: int) -> None:
        """Draws which layers update `num_updates` drops, whatever else has drawn a number."""
        draws = np.random.default_rng((self.seed, num_updates)).random(len(self.layers))
        layers = (layer for layer in self.modules() if isinstance(layer, SpeechEncoderLayer))
        for layer, draw in zip(layers, draws, strict=True):
            layer.dropped = bool(draw < self.layer_drop)

    def forward(self, source: Tensor, padding_mask: Tensor | None) -> dict[str, Tensor | None]:
        """Reads a batch.

        Args:
            source: (B, T, features), normalized.
            padding_mask: (B, T), True at padding; None if there is none.

        Returns:
            `encoder_out`: logits (T', B, labels), T' = ⌈T/3⌉; `padding_mask`: (B, T') or None.
        """
        x, padding_mask = self.front_end(source, padding_mask)
        x = x + self.positions(x, padding_mask)
        x = x.transpose(0, 1)  # (T', B, C)
        for layer in self.layers:
            x = layer(x, padding_mask)
        return {"encoder_out": self.output(self.layer_norm(x)), "padding_mask": padding_mask}

    def max_positions(self) -> None:
        """Utterances may have any length."""


class SpeechModel(StableModel, FairseqEncoderModel):
    """A CTC model of letters: features (batch, time, 80) → logits (⌈time/3⌉, batch, labels)."""

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "SpeechModel":
        """Builds the model of a config and task.

        Raises:
            ValueError: options that contradict each other, in one line.
        """
        _check_options(cfg)
        nested = transformer_config(cfg)
        features = task.data_cfg.input_feat_per_channel
        model = cls(SpeechEncoder(nested, features, task.target_dictionary))
        model.set_options(cfg)
        return model

    def forward(
        self, source: Tensor, padding_mask: Tensor | None = None
    ) -> dict[str, Tensor | None]:
        """See `SpeechEncoder.forward`."""
        output: dict[str, Tensor | None] = self.encoder(source, padding_mask)
        return output


def _check_options(cfg: Any) -> None:
    if cfg.reparam_conv and str(cfg.reparam) == "none":
        raise ValueError("--reparam-conv needs a --reparam other than none")
    if not 0 <= cfg.encoder_layerdrop < 1:
        raise ValueError(
            f"--encoder-layerdrop {cfg.encoder_layerdrop} is not a share from 0 to below 1"
        )


for _name, _options in ARCHITECTURES.items():
    for _depth in DEPTHS:
        register_architecture(
            f"{_name}_{_depth}l", SpeechModel, SpeechConfig, {**_options, "encoder_layers": _depth}
        )
