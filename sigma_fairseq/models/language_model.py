"""Language models: fairseq's `transformer_lm` with norm placement and reparameterization.

An architecture is a row of `ARCHITECTURES` at a depth of `DEPTHS`: `transformer_lm_wiki103`
(Baevski & Auli, 2019; Appendix G) of 16 layers, as in its recipe, or of 32, as the paper says.
"""

import ast
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models.transformer_lm import (
    DEFAULT_MAX_TARGET_POSITIONS,
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
)
from fairseq.modules import AdaptiveInput, CharacterTokenEmbedder
from fairseq.modules.adaptive_softmax import TiedLinear
from torch import Tensor, nn
from torch.nn import functional as F

from sigma_fairseq.layers import deepnorm
from sigma_fairseq.models.architectures import register_architecture
from sigma_fairseq.models.decoder import TransformerDecoder
from sigma_fairseq.models.options import (
    StabilityConfig,
    check_bands,
    check_shared_output,
    transformer_config,
)
from sigma_fairseq.models.stable_model import StableModel
from sigma_fairseq.reparam import convert
from sigma_fairseq.reparam.layers import init_truncated_normal_

DEPTHS = (16, 32)
ARCHITECTURES: dict[str, dict[str, str]] = {
    "transformer_lm_postln_wiki103": {"norm": "postln"},
    "transformer_lm_preln_wiki103": {"norm": "preln"},
    "transformer_lm_reparam_noln_wiki103": {"norm": "noln", "reparam": "sigma"},
}

#: What all of them have of fairseq's `transformer_lm_wiki103`.
WIKI103: dict[str, Any] = {
    "decoder_embed_dim": 1024,
    "decoder_ffn_embed_dim": 4096,
    "decoder_attention_heads": 8,
    "dropout": 0.3,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "adaptive_input": True,
    "adaptive_input_cutoff": "20000,60000",
    "adaptive_softmax_cutoff": "20000,60000",
    "adaptive_softmax_dropout": 0.2,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
    "no_decoder_final_norm": True,
}

#: Linears outside the layers, none of which is a matrix over the vocabulary.
_PROJECTIONS = re.compile(
    r"embed_tokens\.embeddings\.\d+\.1|project_(in|out)_dim"
    r"|adaptive_softmax\.(head\.class_proj|tail\.\d+\.0)"
)

#: Embeddings in the state: one of all words, or one of each band of adaptive input.
_TABLES = re.compile(r"decoder\.embed_tokens\.(embeddings\.\d+\.0\.)?weight")


@dataclass
class LanguageModelConfig(StabilityConfig, TransformerLanguageModelConfig):
    """The options of a language model."""

    decoder_input_dim: int = field(
        default="${.decoder_embed_dim}",  # type: ignore[assignment]
        metadata={"help": "decoder input dimension"},
    )
    decoder_output_dim: int = field(
        default="${.decoder_embed_dim}",  # type: ignore[assignment]
        metadata={"help": "decoder output dimension"},
    )
    no_reparam_projections: bool = field(
        default=False,
        metadata={
            "help": "reparameterize the linears of the layers only, not the projections of "
            "adaptive input and adaptive softmax"
        },
    )


class TiedProjection(nn.Module):
    """x (..., out_features) → x·Ŵ (..., in_features): a linear layer's weight, used the other way.

    fairseq's `TiedLinear` shares a parameter, which is W: it knows nothing of Ŵ.

    Args:
        linear: the layer, whatever parametrization it has now or later.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # In a tuple: as a child it would be in the state twice.
        self.tied = (linear,)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.tied[0].weight.t())


class LanguageModelDecoder(TransformerDecoder):
    """The decoder, with projections that can be reparameterized and tokens that must be known.

    Attributes:
        dictionary_version: CRC-32 of the words, a buffer: a checkpoint read with other words of
            the same number would load, and make nonsense of every text.
    """

    dictionary_version: Tensor

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Module) -> None:
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn=True)
        words = "\n".join(dictionary[index] for index in range(len(dictionary)))
        self.register_buffer("dictionary_version", torch.tensor(zlib.crc32(words.encode())))
        if cfg.reparam != "none" and not cfg.no_reparam_projections:
            self._reparameterize_projections(cfg)

    def _reparameterize_projections(self, cfg: Any) -> None:
        if self.adaptive_softmax is not None and isinstance(self.embed_tokens, AdaptiveInput):
            for band, tail in enumerate(self.adaptive_softmax.tail, start=1):
                if isinstance(tail[0], TiedLinear):
                    tail[0] = TiedProjection(self.embed_tokens.embeddings[band][1])
        if cfg.reparam_init_std is not None:
            for name, module in self.named_modules():
                if _PROJECTIONS.fullmatch(name) and isinstance(module, nn.Linear):
                    init_truncated_normal_(module.weight, module.bias, cfg.reparam_init_std)
        convert(self, reparam=cfg.reparam, where=lambda name, _: bool(_PROJECTIONS.fullmatch(name)))

    def upgrade_state_dict_named(self, state_dict: Any, name: str) -> Any:
        """As fairseq's; a state of fairseq's own model is taken to be of this dictionary."""
        own = f"{name}.dictionary_version"
        # It had another name, which fairseq's moving averages of models took for a weight.
        before = state_dict.pop(f"{name}.dictionary_checksum", self.dictionary_version)
        state_dict.setdefault(own, before)
        return super().upgrade_state_dict_named(state_dict, name)

    def forward(self, prev_output_tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's, (batch, time) → (batch, time, channel or vocabulary) and its extras.

        Raises:
            ValueError: a token that is not in the dictionary.
        """
        self.check_tokens(prev_output_tokens)
        return super().forward(prev_output_tokens, *args, **kwargs)

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuses what adaptive inputs would take without a word, and make anything of.

        Raises:
            ValueError: a token that is not in the dictionary.
        """
        largest = int(tokens.max()) if tokens.numel() else 0
        if largest >= len(self.dictionary):
            raise ValueError(
                f"token {largest} is not one of the {len(self.dictionary)} of the dictionary: the "
                "data were binarised with another one"
            )


class _AdaptiveInput(AdaptiveInput):
    """fairseq's, in fp32 under autocast too, where it would write fp16 into a tensor of fp32."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            embedded: Tensor = super().forward(input)
        return embedded


class LanguageModel(StableModel, TransformerLanguageModel):
    """fairseq's `transformer_lm` with the options of `StabilityConfig`.

    Shapes: source tokens (batch, time) → features (batch, time, channel) with adaptive softmax, and
    logits (batch, time, vocabulary) without, as in fairseq.
    """

    @classmethod
    def hub_models(cls) -> dict[str, str]:
        """Models to download: none; fairseq's are of its own architectures."""
        return {}

    @classmethod
    def add_args(cls, parser: Any) -> None:
        # Not by the architecture's own config: fairseq makes a flag that is set by default one
        # that unsets it, so that --adaptive-input, given again, would switch adaptive input off.
        gen_parser_from_dataclass(parser, LanguageModelConfig(), delete_default=True)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LanguageModel":
        """Builds the model of a config and task.

        Raises:
            ValueError: options that contradict each other or do not fit the data, in one line.
        """
        _check_options(cfg, len(task.source_dictionary))
        _check_splits(task)
        # "The default initialization from the Transformer baseline" (Appendix I).
        nested = transformer_config(cfg, default_init_std=None)
        nested.max_target_positions = (
            cfg.max_target_positions or cfg.tokens_per_sample or DEFAULT_MAX_TARGET_POSITIONS
        )
        nested.decoder.deepnorm = None
        if nested.norm == "deepnorm":
            # From the depth of training, which pruning by layers_to_keep leaves as it is.
            nested.decoder.deepnorm = deepnorm.single_stack(nested.decoder.layers)
        if cfg.decoder_layers_to_keep:
            nested.decoder.layers = len(cfg.decoder_layers_to_keep.split(","))
        embed_tokens = cls._build_input(cfg, task.source_dictionary)
        model = cls(LanguageModelDecoder(nested, task.target_dictionary, embed_tokens))
        model.set_options(cfg)
        return model

    @classmethod
    def _build_input(cls, cfg: Any, dictionary: Any) -> nn.Module:
        if cfg.character_embeddings:
            return CharacterTokenEmbedder(
                dictionary,
                ast.literal_eval(cfg.character_filters),
                cfg.character_embedding_dim,
                cfg.decoder_embed_dim,
                cfg.char_embedder_highway_layers,
            )
        if cfg.adaptive_input:
            return _AdaptiveInput(
                len(dictionary),
                dictionary.pad(),
                cfg.decoder_input_dim,
                cfg.adaptive_input_factor,
                cfg.decoder_embed_dim,
                utils.eval_str_list(cfg.adaptive_input_cutoff, type=int),
                cfg.quant_noise_pq,
                cfg.quant_noise_pq_block_size,
            )
        embedding: nn.Module = cls.build_embedding(cfg, dictionary, cfg.decoder_input_dim)
        return embedding

    def get_targets(self, sample: Any, net_output: Any) -> Tensor:
        """The sample's targets, (batch, time).

        Raises:
            ValueError: one that is not in the dictionary.
        """
        targets: Tensor = super().get_targets(sample, net_output)
        self.decoder.check_tokens(targets)
        return targets

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's.

        Raises:
            ValueError: the state is of another dictionary.
        """
        words = sum(len(table) for name, table in state_dict.items() if _TABLES.fullmatch(name))
        if words and words != len(self.decoder.dictionary):
            raise ValueError(
                f"the checkpoint is of a dictionary of {words} words, the data's has "
                f"{len(self.decoder.dictionary)}: take the data it was trained on"
            )
        names = ("decoder.dictionary_version", "decoder.dictionary_checksum")
        versions = [state_dict[name] for name in names if name in state_dict]
        if any(version != self.decoder.dictionary_version for version in versions):
            raise ValueError(
                "the checkpoint is of a dictionary of as many other words as the data's, or of "
                "another order: take the data it was trained on"
            )
        return super().load_state_dict(state_dict, *args, **kwargs)

    def prepare_for_inference_(self, cfg: Any) -> None:
        """As fairseq's.

        Raises:
            ValueError: a context window that leaves nothing of a block to predict, or a block that
                is longer than the model's.
        """
        window = cfg.eval_lm.context_window
        if window > 0:
            # fairseq-eval-lm has taken the window off the block.
            block = cfg.task.tokens_per_sample + window
            if window >= block:
                raise ValueError(
                    f"--context-window {window} leaves nothing to predict of a block of "
                    f"--tokens-per-sample {block}"
                )
            if block > self.max_positions():
                # It would read on beyond the last position that the model was trained at, or, where
                # the block without the window is too long, leave blocks out and not say so.
                raise ValueError(
                    f"--tokens-per-sample {block} is more than the {self.max_positions()} tokens "
                    "that the model was made for"
                )
        super().prepare_for_inference_(cfg)


def _check_options(cfg: Any, words: int) -> None:
    if cfg.no_reparam_projections and str(cfg.reparam) == "none":
        raise ValueError("--no-reparam-projections needs a --reparam other than none")
    if cfg.adaptive_input and not cfg.adaptive_input_cutoff:
        raise ValueError("--adaptive-input needs --adaptive-input-cutoff")
    if cfg.adaptive_input:
        check_bands(cfg, "adaptive_input", cfg.decoder_input_dim, words)
    if cfg.adaptive_softmax_cutoff:
        check_bands(cfg, "adaptive_softmax", cfg.decoder_output_dim, words)
    if cfg.adaptive_input or cfg.character_embeddings:
        if cfg.share_decoder_input_output_embed and not cfg.adaptive_softmax_cutoff:
            raise ValueError(
                "--share-decoder-input-output-embed needs one table of embeddings: neither "
                "--adaptive-input nor --character-embeddings"
            )
    else:
        check_shared_output(cfg, cfg.decoder_input_dim)
    if cfg.character_embeddings and cfg.decoder_layers_to_keep:
        # fairseq takes the layers of the embedder for the decoder's.
        raise ValueError("--character-embeddings contradicts --decoder-layers-to-keep")
    if (
        cfg.quant_noise_pq > 0
        and not cfg.adaptive_input
        and cfg.decoder_input_dim != cfg.decoder_embed_dim
    ):
        raise ValueError(
            f"--quant-noise-pq needs a --decoder-input-dim of {cfg.decoder_embed_dim}, as wide as "
            f"the decoder, not {cfg.decoder_input_dim}"
        )
    if cfg.tie_adaptive_weights and (
        not cfg.adaptive_input
        or cfg.character_embeddings
        or cfg.adaptive_input_cutoff != cfg.adaptive_softmax_cutoff
        or cfg.adaptive_input_factor != cfg.adaptive_softmax_factor
        or not cfg.decoder_input_dim == cfg.decoder_embed_dim == cfg.decoder_output_dim
    ):
        raise ValueError(
            "--tie-adaptive-weights needs --adaptive-input of the same cutoff and factor as the "
            "adaptive softmax's, and an input and an output as wide as the decoder"
        )


def _check_splits(task: Any) -> None:
    for folder in utils.split_paths(task.args.data or ""):
        for split in sorted(Path(folder).glob("*.bin")):
            # fairseq fails to map such a file and does not say which one.
            if split.stat().st_size == 0:
                raise ValueError(f"{split} is empty: the split has no text")


for _name, _options in ARCHITECTURES.items():
    for _depth in DEPTHS:
        register_architecture(
            f"{_name}_{_depth}l",
            LanguageModel,
            LanguageModelConfig,
            {**WIKI103, **_options, "decoder_layers": _depth},
        )
