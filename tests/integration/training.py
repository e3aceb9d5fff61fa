"""fairseq's trainer in this process, for tests that look into models while they train."""

import json
import re
import shutil
from itertools import cycle
from pathlib import Path
from typing import Any

from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.trainer import Trainer

from tests.conftest import USER_DIR
from tests.speech.corpus import write_corpus

COMMON = (
    *("--user-dir", USER_DIR, "--cpu", "--seed", "7", "--num-workers", "0"),
    *("--optimizer", "adam", "--lr", "1e-2", "--required-batch-size-multiple", "1"),
    *("--ddp-backend", "legacy_ddp", "--dropout", "0", "--attention-dropout", "0"),
    *("--activation-dropout", "0"),
)
ENCODER = (
    *("--encoder-layers", "1", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32"),
    *("--encoder-attention-heads", "4"),
)
DECODER = ("--decoder-layers", "1", "--decoder-attention-heads", "4")
#: A narrow σReparam model of each family, with everything random turned off.
FAMILIES = {
    "translation": (
        *("--task", "translation", "--arch", "transformer_reparam_deepnorm_6l"),
        *(*ENCODER, *DECODER, "--share-all-embeddings", "--batch-size", "15"),
        *("--criterion", "monitored_label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
    ),
    "speech": (
        *("--task", "ctc_speech", "--train-subset", "train", "--valid-subset", "dev"),
        *("--arch", "ctc_transformer_reparam_postln_36l", *ENCODER, "--max-tokens", "200"),
        *("--cape-global-shift", "0", "--encoder-layerdrop", "0", "--dropout-input", "0"),
        *("--criterion", "monitored_ctc", "--zero-infinity", "--sentence-avg"),
    ),
    "language_model": (
        *("--task", "language_modeling", "--tokens-per-sample", "16", "--max-tokens", "128"),
        *("--arch", "transformer_lm_reparam_noln_wiki103_16l", *DECODER),
        *("--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32"),
        *("--adaptive-input-cutoff", "6,9", "--adaptive-softmax-cutoff", "6,9"),
        *("--adaptive-softmax-dropout", "0", "--criterion", "monitored_adaptive_loss"),
    ),
}


def write_data(folder: Path, pairs: Path) -> None:
    """Fills a data folder for each family: binarised pairs, their source side alone, and noise."""
    shutil.copytree(pairs, folder / "translation")
    text = folder / "language_model"
    text.mkdir()
    shutil.copy(pairs / "dict.en.txt", text / "dict.txt")
    for split in ("train", "valid"):
        for kind in ("bin", "idx"):
            shutil.copy(pairs / f"{split}.en-de.en.{kind}", text / f"{split}.{kind}")
    write_corpus(folder / "speech", {"train": 8, "dev": 2})


def build_trainer(
    family: str, data: Path, save_dir: Path, *args: str, bf16: bool = False
) -> Trainer:
    """The trainer that `fairseq-train` would make.

    Args:
        family: one of `FAMILIES`.
        data: its folder.
        save_dir: for the records of the monitors.
        args: further options.
        bf16: bfloat16 as `fairseq-hydra-train` has it; of `fairseq-train` it is for TPUs alone.
    """
    words = [str(data), "--save-dir", str(save_dir), *COMMON, *FAMILIES[family], *args]
    cfg = parse(words)
    cfg.common.bf16 = bf16
    return trainer_of(cfg)


def parse(words: list[str]) -> Any:
    """The config that `fairseq-train` makes of a command line."""
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    return convert_namespace_to_omegaconf(args)


def trainer_of(cfg: Any) -> Trainer:
    """The trainer that `fairseq-train` would make of its config."""
    utils.import_user_module(cfg.common)
    if cfg.distributed_training.distributed_world_size > 1:
        distributed_utils.distributed_init(cfg)
    utils.set_torch_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def first_epoch(trainer: Trainer) -> list[dict[str, Any]]:
    """The batches of this worker."""
    return list(trainer.get_train_iterator(epoch=1).next_epoch_itr(shuffle=False))


def update(trainer: Trainer, samples: list[dict[str, Any]]) -> float:
    """Makes one update of the samples, one micro-batch each, and returns their loss, unrounded."""
    with metrics.aggregate(new_root=True) as logged:
        trainer.train_step(samples)
    return float(logged["loss"].avg)


def train(trainer: Trainer, updates: int, micro_batches: int = 1) -> list[float]:
    """The losses of so many updates, over and over the first epoch in the same order."""
    batches = cycle(first_epoch(trainer))
    return [update(trainer, [next(batches) for _ in range(micro_batches)]) for _ in range(updates)]


def losses_of(log: str) -> list[float]:
    """The training loss of every update in a log of fairseq-train, three digits of each."""
    logged = re.findall(r"\btrain_inner\b[^{]*(\{.*\})$", log, re.M)
    return [float(json.loads(line)["loss"]) for line in logged]
