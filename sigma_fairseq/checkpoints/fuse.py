"""From a checkpoint of reparameterized weights to one of plain weights, fairseq's own if it can be.

Every Ŵ, of whatever reparameterization and grouping, becomes a weight.
"""

import dataclasses
from argparse import Namespace
from typing import Any

import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY

from sigma_fairseq.checkpoints.files import Checkpoint, CheckpointError, check_output, load, save
from sigma_fairseq.models.language_model import LanguageModel
from sigma_fairseq.models.options import StabilityConfig
from sigma_fairseq.models.stable_model import StableModel
from sigma_fairseq.models.translation import TranslationModel
from sigma_fairseq.reparam import fuse

#: The options of a model, as far as it has them, that say that its weights are plain.
PLAIN = {
    "reparam": "none",
    "reparam_init_std": None,
    "reparam_qkv": "separate",
    "gamma_lr_scale": 1.0,
    "reparam_conv": False,
    "no_reparam_projections": False,
}


@dataclasses.dataclass(frozen=True)
class Fused:
    """What `fuse_checkpoint` has written.

    Attributes:
        task: fairseq's name of the model's task.
        data: the data folder that the file names.
        lacking: what stock fairseq has not got of it; None if it loads without this plugin.
    """

    task: str
    data: str
    lacking: str | None


def fuse_checkpoint(checkpoint: str, out: str, data: str | None = None) -> Fused:
    """Writes a checkpoint of plain weights that computes what the given one computes.

    Args:
        checkpoint: of a model of this package.
        out: file to write. It serves evaluation, and training as a start: the state of the
            optimizer is that of other weights and left out.
        data: folder of the dictionaries; by default the one in the checkpoint.

    Raises:
        CheckpointError: the checkpoint's weights are plain already, or one of the files cannot be
            read or written.
    """
    check_output(out)
    source = load(checkpoint, data)
    options = source.options("model")
    if not isinstance(source.model, StableModel):
        raise CheckpointError(
            f"{checkpoint} is of fairseq's own {options['_name']}: there is nothing to fuse"
        )
    stock = _stock_name(source.model)
    lacking = _lacking(options) if stock else "models of speech like it"
    if lacking and options["reparam"] == "none":
        raise CheckpointError(f"{checkpoint} has plain weights: there is nothing to fuse")
    if lacking or not stock:
        plain = {name: value for name, value in PLAIN.items() if name in options}
        config = {**source.config, "model": {**options, **plain}}
    else:
        config = _stock_config(source, stock)
    model = source.build(config)
    weights = dict(fuse(source.model).named_parameters())
    with torch.no_grad():
        # Of parameters that are shared, both models have the first name.
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    save(out, source, config, model)
    task = source.options("task")
    return Fused(task["_name"], task["data"], lacking)


def _stock_name(model: StableModel) -> str | None:
    """fairseq's own model that this one extends; None for one that fairseq has not got."""
    if isinstance(model, TranslationModel):
        return "transformer"
    return "transformer_lm" if isinstance(model, LanguageModel) else None


def _lacking(options: dict[str, Any]) -> str | None:
    """An option of a model, as it is set, that stock fairseq has not got."""
    if options["norm"] not in ("postln", "preln"):
        return f"--norm {options['norm']}"
    if options["qk_norm"]:
        return "--qk-norm"
    return "--attention-temperature" if options["attention_temperature"] != 1 else None


def _stock_config(source: Checkpoint, name: str) -> dict[str, Any]:
    """The config of fairseq's own model `name`, without what its safe mode does not load."""
    config = {
        section: vars(content) if isinstance(content, Namespace) else content
        for section, content in source.config.items()
    }
    options = source.options("model")
    own = {field.name for field in dataclasses.fields(StabilityConfig)} | PLAIN.keys()
    model = {key: value for key, value in options.items() if key not in own}
    for key in ("encoder_normalize_before", "decoder_normalize_before"):
        if key in model:
            model[key] = options["norm"] == "preln"
    return {
        **config,
        "common": {**config["common"], "user_dir": None},
        "model": {**model, "_name": name},
        "criterion": _stock_criterion(config["criterion"]),
    }


def _stock_criterion(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a criterion, a monitored one's as those of the criterion that it extends."""
    name = options["_name"].removeprefix("monitored_")
    if name == options["_name"]:
        return options
    known = [field.name for field in dataclasses.fields(CRITERION_DATACLASS_REGISTRY[name])]
    return {key: options[key] for key in known} | {"_name": name}
