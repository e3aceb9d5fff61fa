"""The options that every model family has, and which of them contradict each other."""

from argparse import Namespace
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Optional

from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models.transformer import TransformerConfig
from omegaconf import OmegaConf

from sigma_fairseq.expressions import calls_something

DEFAULT_INIT_STD = 0.1

NormPlacement = ChoiceEnum(["postln", "preln", "deepnorm", "noln"])
ReparamChoice = ChoiceEnum(["none", "sigma", "spectral_norm", "weight_norm"])
QkvGrouping = ChoiceEnum(["separate", "qk", "qkv"])


@dataclass
class StabilityConfig(FairseqDataclass):
    """Norm placement, reparameterization and attention of a model."""

    norm: NormPlacement = field(  # type: ignore[valid-type]
        default="postln",
        metadata={
            "help": "where the LayerNorms are: after each residual (postln), before each block "
            "(preln), after a scaled residual (deepnorm: alpha and beta of Wang et al., 2022), or "
            "nowhere (noln)"
        },
    )
    reparam: ReparamChoice = field(  # type: ignore[valid-type]
        default="none",
        metadata={
            "help": "reparameterization of every linear layer: none, sigma (the paper's: W times "
            "gamma / sigma(W)), spectral_norm (gamma fixed at 1), weight_norm"
        },
    )
    reparam_init_std: Optional[float] = field(  # noqa: UP045 (fairseq cannot parse X | None)
        default=None,
        metadata={
            "help": "std of the truncated normal that reparameterized weights start from; the "
            f"paper uses 0.1 or 0.01 in translation (default: {DEFAULT_INIT_STD}; in language "
            "models fairseq's own weights; sigma only)"
        },
    )
    reparam_qkv: QkvGrouping = field(  # type: ignore[valid-type]
        default="separate",
        metadata={
            "help": "which projections of an attention share one sigma and one gamma: none, "
            "queries and keys, or queries, keys and values (sigma only)"
        },
    )
    gamma_lr_scale: float = field(
        default=1.0,
        metadata={
            "help": "learning rate of gamma, as a multiple of the others' (the paper uses 2 on "
            "960 h of speech; sigma only)"
        },
    )
    qk_norm: bool = field(
        default=False,
        metadata={
            "help": "LayerNorm on each head's queries and keys before their product (Dehghani et "
            "al., 2023)"
        },
    )
    attention_temperature: float = field(
        default=1.0,
        metadata={"help": "divides the logits of every attention (the paper's intervention: 0.1)"},
    )
    temperature_from_update: int = field(
        default=0,
        metadata={
            "help": "update from which on --attention-temperature holds; before it the temperature "
            "is 1"
        },
    )
    no_fast_path: bool = field(
        default=False,
        metadata={
            "help": "compute every effective weight and every projection by itself, and attend as "
            "fairseq does: slower; what the fast path is held against"
        },
    )


def transformer_config(
    options: Any, default_init_std: float | None = DEFAULT_INIT_STD
) -> TransformerConfig:
    """fairseq's nested config of a model's options, which fairseq's layers read.

    Args:
        options: as for `check_options`; fields that the nested config does not know, those of
            `StabilityConfig` among them, become its attributes.
        default_init_std: of weights under σReparam, where the options have none; None for the
            weights that fairseq draws.

    Raises:
        ValueError: options that contradict each other, in one line.
    """
    check_options(options)
    values: Any = OmegaConf.to_container(options, resolve=True, enum_to_str=True)
    if values["reparam"] == "sigma" and values["reparam_init_std"] is None:
        values["reparam_init_std"] = default_init_std
    nested = TransformerConfig.from_namespace(Namespace(**values))
    nested.encoder.normalize_before = nested.decoder.normalize_before = nested.norm == "preln"
    return nested


def check_options(options: Any) -> None:
    """Refuses options that contradict each other.

    Args:
        options: a config with the fields of `StabilityConfig` and what its family has of
            fairseq's flat transformer ones.

    Raises:
        ValueError: one line that names the options and what is allowed.
    """
    norm, reparam = str(options.norm), str(options.reparam)
    if reparam != "sigma":
        for name, neutral in (
            ("reparam_qkv", "separate"),
            ("reparam_init_std", None),
            ("gamma_lr_scale", 1.0),
        ):
            value = getattr(options, name)
            if value != neutral:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} {value} needs --reparam sigma, not --reparam {reparam}")
    elif options.reparam_init_std is not None and not options.reparam_init_std > 0:
        raise ValueError(f"--reparam-init-std {options.reparam_init_std} is not above 0")
    if not options.gamma_lr_scale >= 0:
        raise ValueError(f"--gamma-lr-scale {options.gamma_lr_scale} is below 0")
    for name in ("encoder_normalize_before", "decoder_normalize_before"):
        if getattr(options, name, False) and norm != "preln":
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} is pre-LN and contradicts --norm {norm}; allowed: --norm preln"
            )
    for name in ("layernorm_embedding", "scale_attn", "scale_fc"):
        if norm == "noln" and getattr(options, name, False):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} contradicts --norm noln, which has no LayerNorm")
    for name in ("quant_noise_pq", "quant_noise_scalar"):
        if reparam != "none" and getattr(options, name, 0) > 0:
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} changes plain weights and contradicts --reparam {reparam}; "
                "allowed: --reparam none"
            )
    _check_attention(options)
    _check_widths(options)


def check_shared_output(options: Any, width: int) -> None:
    """Refuses to share the decoder's embeddings with an output layer that they do not fit.

    Args:
        options: as for `check_options`.
        width: of the embeddings.

    Raises:
        ValueError: one line that names the options.
    """
    for name in ("share_decoder_input_output_embed", "share_all_embeddings", "merge_src_tgt_embed"):
        if getattr(options, name, False):
            flag = "--" + name.replace("_", "-")
            if options.adaptive_softmax_cutoff:
                # fairseq would train it, and then not load its checkpoint.
                raise ValueError(f"{flag} contradicts --adaptive-softmax-cutoff")
            if width != int(options.decoder_output_dim):
                raise ValueError(
                    f"{flag} needs a --decoder-output-dim of {width}, as wide as the embeddings, "
                    f"not {options.decoder_output_dim}"
                )


def check_bands(options: Any, name: str, width: int, words: int) -> None:
    """Refuses cutoffs and factors that leave a band of adaptive input or softmax without anything.

    Args:
        options: as for `check_options`.
        name: `adaptive_input` or `adaptive_softmax`.
        width: of the embeddings of the first band.
        words: of the dictionary.

    Raises:
        ValueError: one line that names the option and what is allowed.
    """
    flag = "--" + name.replace("_", "-")
    cutoff, factor = getattr(options, f"{name}_cutoff"), getattr(options, f"{name}_factor")
    if calls_something(cutoff):
        raise ValueError(f"{flag}-cutoff {cutoff} would run code")
    bounds = [0, *(utils.eval_str_list(cutoff, type=int) or []), words]
    if any(low >= high for low, high in pairwise(bounds)):
        raise ValueError(
            f"{flag}-cutoff {cutoff} does not rise from above 0 to below the {words} words of the "
            "dictionary"
        )
    widths = [int(width // factor**band) for band in range(len(bounds) - 1)]
    if not widths[-1]:
        raise ValueError(
            f"{flag}-factor {factor:g} leaves a width of 0 to the last of {len(widths)} bands, of "
            f"{width} to the first; allowed: a smaller one, or fewer numbers in {flag}-cutoff"
        )
    if name == "adaptive_input":
        _check_blocks(options, f"{flag}-factor {factor:g}", *widths)


def _check_widths(options: Any) -> None:
    for stack in ("encoder", "decoder"):
        if not hasattr(options, f"{stack}_embed_dim"):
            continue
        width, ffn, heads = (
            getattr(options, f"{stack}_{name}")
            for name in ("embed_dim", "ffn_embed_dim", "attention_heads")
        )
        if width % heads:
            raise ValueError(
                f"--{stack}-embed-dim {width} is not a multiple of --{stack}-attention-heads "
                f"{heads}"
            )
        _check_blocks(options, f"--{stack}-embed-dim {width}", width)
        _check_blocks(options, f"--{stack}-ffn-embed-dim {ffn}", ffn)
    if hasattr(options, "encoder_embed_dim") and hasattr(options, "decoder_embed_dim"):
        _check_equal_widths(options)


def _check_equal_widths(options: Any) -> None:
    encoder, decoder = options.encoder_embed_dim, options.decoder_embed_dim
    qkv = str(options.reparam_qkv)
    for flag, given in (
        ("--cross-self-attention", options.cross_self_attention),
        ("--merge-src-tgt-embed", options.merge_src_tgt_embed),
        (f"--reparam-qkv {qkv}", qkv != "separate" and not options.no_cross_attention),
    ):
        if given and encoder != decoder:
            raise ValueError(
                f"{flag} needs an encoder as wide as the decoder, not --encoder-embed-dim "
                f"{encoder} and --decoder-embed-dim {decoder}"
            )


def _check_blocks(options: Any, cause: str, *widths: int) -> None:
    """Refuses inputs of linears that product quantization cannot cut into its blocks."""
    if getattr(options, "quant_noise_pq", 0) > 0:
        block = options.quant_noise_pq_block_size
        if any(width % block for width in widths):
            raise ValueError(
                f"--quant-noise-pq-block-size {block} does not divide what {cause} makes"
            )


def _check_attention(options: Any) -> None:
    temperature, update = options.attention_temperature, options.temperature_from_update
    if not temperature > 0:
        raise ValueError(f"--attention-temperature {temperature} is not above 0")
    if update < 0:
        raise ValueError(f"--temperature-from-update {update} is below 0")
    if update and temperature == 1:
        raise ValueError(f"--temperature-from-update {update} needs --attention-temperature")
    for name in ("encoder_xformers_att_config", "decoder_xformers_att_config"):
        if getattr(options, name, None) and (options.qk_norm or temperature != 1):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} has neither --qk-norm nor --attention-temperature")
