"""Checkpoint files as `fuse` and `import` read and write them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from fairseq.models import BaseFairseqModel
from omegaconf import OmegaConf

from sigma_fairseq.checkpoints.safe_mode import read_checkpoint


class CheckpointError(Exception):
    """A checkpoint cannot be read, turned into another or written; the message is one line."""


@dataclasses.dataclass
class Checkpoint:
    """A checkpoint with its model.

    Attributes:
        state: what is in the file, as fairseq upgrades it.
        config: section → options, those of a component without a dataclass in a namespace.
        task: of the config, with its dictionaries.
        model: of the config, with the weights of the file.
    """

    state: dict[str, Any]
    config: dict[str, Any]
    task: Any
    model: BaseFairseqModel

    def options(self, section: str) -> dict[str, Any]:
        """The options of a section of the config, whatever they are kept in."""
        options = self.config[section]
        return dict(options) if isinstance(options, Mapping) else vars(options)

    def build(self, config: dict[str, Any]) -> BaseFairseqModel:
        """The model of another config of the same task, with weights as it starts from."""
        options = OmegaConf.create(config, flags={"allow_objects": True}).model
        model: BaseFairseqModel = self.task.build_model(options, from_checkpoint=True)
        return model


def load(path: str, data: str | None) -> Checkpoint:
    """Reads a checkpoint and builds its model.

    Args:
        path: a file that fairseq saved.
        data: the folder of its dictionaries; by default the one in the checkpoint.

    Raises:
        CheckpointError: the file, its data or its model cannot be read.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} is not a file")
    try:
        state = read_checkpoint(path, {"data": data} if data else {})
        folder = utils.split_paths(state["cfg"].task.data)[0]
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    except AttributeError as error:
        raise CheckpointError(f"{path} is not of a task with data") from error
    if not Path(folder).is_dir():
        raise CheckpointError(
            f"{path} needs the dictionaries of its data, and {folder} is not a folder: --data DIR "
            "says where they are"
        )
    try:
        (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([path], state=state)
    except (Exception, SystemExit) as error:
        reason = str(error).rpartition("\n")[2].strip()
        raise CheckpointError(
            f"{path} does not load with the data in {folder}: {reason}"
        ) from error
    config: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return Checkpoint(state, config, task, model)


def save(path: str, source: Checkpoint, config: dict[str, Any], model: BaseFairseqModel) -> None:
    """Writes a model with what fairseq reads beside it, and without the state of any optimizer.

    Args:
        path: the file; it is there when it is complete.
        source: what the model was made of: it has the number of updates and of the epoch.
        config: the model's.
        model: what to write.

    Raises:
        CheckpointError: the file cannot be written.
    """
    state = {
        "args": None,
        "cfg": config,
        "model": model.state_dict(),
        "criterion": None,
        "optimizer_history": source.state["optimizer_history"],
        "task_state": source.state.get("task_state", {}),
        "extra_state": {"train_iterator": source.state["extra_state"]["train_iterator"]},
    }
    partial = Path(path + ".partial")
    try:
        torch.save(state, partial)
        partial.rename(path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def check_output(path: str) -> None:
    """Refuses a file that cannot or should not be written, before any work is done for it.

    Raises:
        CheckpointError: the file exists, or its folder does not.
    """
    if Path(path).exists():
        raise CheckpointError(f"{path} exists already")
    if not Path(path).parent.is_dir():
        raise CheckpointError(f"{Path(path).parent} is not a folder to write to")
