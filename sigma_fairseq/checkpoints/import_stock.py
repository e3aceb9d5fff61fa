"""From a checkpoint of stock fairseq's transformer to one with σReparam that computes the same."""

import dataclasses
from typing import Any

import torch
from fairseq.dataclass.utils import merge_with_parent
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY, BaseFairseqModel
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sigma_fairseq.checkpoints.files import Checkpoint, CheckpointError, check_output, load, save
from sigma_fairseq.models.language_model import LanguageModel
from sigma_fairseq.models.options import StabilityConfig
from sigma_fairseq.models.stable_model import StableModel
from sigma_fairseq.models.translation import TranslationModel
from sigma_fairseq.reparam import SigmaNorm, sigma_norms

#: fairseq's models that can be imported, with ours that compute what they compute.
FAMILIES: dict[type[BaseFairseqModel], type[StableModel]] = {
    TransformerModel: TranslationModel,
    TransformerLanguageModel: LanguageModel,
}

DEPTHS = ("encoder_layers", "decoder_layers")
NORMS = ("encoder_normalize_before", "decoder_normalize_before")


@dataclasses.dataclass(frozen=True)
class Imported:
    """What `import_checkpoint` has written.

    Attributes:
        data: the data folder that the file names.
        options: for `fairseq-train` to build the model of the file.
    """

    data: str
    options: list[str]


def import_checkpoint(
    checkpoint: str,
    out: str,
    arch: str,
    qkv: str = "separate",
    depths: dict[str, int] | None = None,
    data: str | None = None,
) -> Imported:
    """Writes a checkpoint with σReparam, γ = σ(W), that computes what a plain one computes.

    Args:
        checkpoint: of fairseq's own `transformer` or `transformer_lm`, at any of their
            architectures.
        out: file to write.
        arch: the architecture of this package that has the depth and norm placement of the
            checkpoint; everything else is the checkpoint's.
        qkv: as `--reparam-qkv`.
        depths: `encoder_layers` and `decoder_layers` where they are to differ from `arch`'s.
        data: folder of the dictionaries; by default the one in the checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another model, depth or norm placement than `arch`, or
            one of the files cannot be read or written.
    """
    check_output(out)
    source = load(checkpoint, data)
    if type(source.model) not in FAMILIES:
        name = source.options("model")["_name"]
        raise CheckpointError(
            f"{checkpoint} is of {name}, not of fairseq's own transformer or transformer_lm"
        )
    _check_family(arch, type(source.model))
    try:
        options, flags = _options(source, arch, qkv, depths or {})
        config = {**source.config, "model": options}
        model = source.build(config)
    except (ValueError, OmegaConfBaseException) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{checkpoint} cannot be imported: {reason}") from error
    _copy_weights(source.model, model)
    save(out, source, config, model)
    task = source.options("task")
    named = ["--task", task["_name"], "--arch", arch]
    if "tokens_per_sample" in task:
        named += ["--tokens-per-sample", str(task["tokens_per_sample"])]
    return Imported(task["data"], named + flags)


def _check_family(arch: str, stock: type[BaseFairseqModel]) -> None:
    allowed = [
        name
        for name, model in MODEL_REGISTRY.items()
        if issubclass(model, FAMILIES[stock])
        and MODEL_DATACLASS_REGISTRY[name]().norm in ("postln", "preln")
    ]
    if arch not in allowed:
        raise CheckpointError(
            f"--arch {arch} is not one of ours that a {stock.__name__} can be; allowed: "
            + ", ".join(allowed)
        )


def _options(
    source: Checkpoint, arch: str, qkv: str, depths: dict[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """The options of the model with σReparam, and those that `fairseq-train --arch` needs."""
    stock = source.options("model")
    defaults = _complete(source, {"_name": arch})
    _check_depth_and_norm(stock, {**defaults, **depths}, arch)
    own = {field.name for field in dataclasses.fields(StabilityConfig)}.union(NORMS)
    kept = {key: value for key, value in stock.items() if key in defaults and key not in own}
    options = _complete(source, {**kept, "_name": arch, "reparam": "sigma", "reparam_qkv": qkv})
    return options, _flags(options, defaults, arch)


def _complete(source: Checkpoint, options: dict[str, Any]) -> dict[str, Any]:
    """Options of one of our architectures, with its defaults for those that are not given."""
    config = OmegaConf.create({**source.config, "model": options}, flags={"allow_objects": True})
    merged = merge_with_parent(MODEL_DATACLASS_REGISTRY[options["_name"]](), config.model)
    complete: Any = OmegaConf.to_container(merged, resolve=True, enum_to_str=True)
    return complete


def _check_depth_and_norm(stock: dict[str, Any], wanted: dict[str, Any], arch: str) -> None:
    before = [stock[name] for name in NORMS if name in wanted]
    norm = "preln" if all(before) else "mixed" if any(before) else "postln"
    found = {"norm": norm} | {name: stock[name] for name in DEPTHS if name in wanted}
    for name, value in found.items():
        if wanted[name] != value:
            raise CheckpointError(
                f"{_flag(name)} is {wanted[name]} by --arch {arch}, and {value} in the checkpoint"
            )


def _flags(options: dict[str, Any], defaults: dict[str, Any], arch: str) -> list[str]:
    """What `fairseq-train --arch` needs beside it to have these options."""
    flags = []
    for name, value in options.items():
        if value == defaults[name]:
            continue
        if value is None or value is False:
            raise CheckpointError(
                f"{_flag(name)} is set by --arch {arch}, not in the checkpoint, and cannot be unset"
            )
        flags.append(_flag(name))
        if isinstance(value, list):
            flags.append(",".join(map(str, value)))
        elif value is not True:
            flags.append(str(value))
    return flags


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@torch.no_grad()
def _copy_weights(stock: BaseFairseqModel, model: BaseFairseqModel) -> None:
    """Gives every W the value of the stock weight, and every γ that of σ(W)."""
    weights = dict(stock.named_parameters())
    gammas = {id(norm.gamma) for norm, _ in sigma_norms(model)}
    for name, parameter in model.named_parameters():
        if id(parameter) not in gammas:
            parameter.copy_(weights[name.replace("parametrizations.weight.original", "weight")])
    for norm, stack in sigma_norms(model):
        norm.load_state_dict(SigmaNorm(stack, gamma="sigma").state_dict())
