"""fairseq's criterions with monitors: `monitored_<name>` is its loss with figures in its log."""

import dataclasses
import logging
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.criterions.adaptive_loss import AdaptiveLoss, AdaptiveLossConfig
from fairseq.criterions.ctc import CtcCriterion, CtcCriterionConfig
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.distributed import utils as distributed
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from omegaconf import II, OmegaConf

from sigma_fairseq.criterions.nonfinite import MOST_IN_A_ROW, NonFinite
from sigma_fairseq.monitor.collapse import CollapseWatch
from sigma_fairseq.monitor.monitor import Monitor
from sigma_fairseq.monitor.records import RecordWriter
from sigma_fairseq.monitor.sample_log import SampleLog

logger = logging.getLogger(__name__)

#: Exit status of a training that `--on-collapse stop` has ended.
COLLAPSED = 3


@dataclasses.dataclass
class MonitorConfig(FairseqDataclass):
    """The options of every monitored criterion."""

    monitor_interval: int = dataclasses.field(
        default=10,
        metadata={
            "help": "updates from one sample of attention entropy, spectral norms and gradient "
            "norms to the next"
        },
    )
    monitor_sigma_error: bool = dataclasses.field(
        default=False,
        metadata={"help": "also the error of every estimate of sigma, by an SVD: slow"},
    )
    on_collapse: ChoiceEnum(["ignore", "warn", "stop"]) = dataclasses.field(  # type: ignore[valid-type]
        default="warn",
        metadata={
            "help": "what to do when attention entropy collapses, or the loss grows, is not finite "
            f"or is stuck: stop saves a checkpoint and exits with status {COLLAPSED}"
        },
    )
    on_nonfinite: ChoiceEnum(["stop", "skip"]) = dataclasses.field(  # type: ignore[valid-type]
        default="stop",
        metadata={
            "help": "what to do when the loss or gradients of a micro-batch are not finite: stop, "
            "or leave it out, and with it what its worker has gathered for the update before it; "
            f"{MOST_IN_A_ROW} in a row stop all the same. What only overflows under the loss "
            "scale of --fp16 and --amp does not count"
        },
    )
    collapse_threshold: float = dataclasses.field(
        default=0.02,
        metadata={
            "help": "an attention has collapsed when the mean entropy of its heads falls below "
            "this share of uniform attention's"
        },
    )
    save_dir: str = II("checkpoint.save_dir")
    no_save: bool = II("checkpoint.no_save")
    fp16: bool = II("common.fp16")
    amp: bool = II("common.amp")


def check_options(cfg: Any) -> None:
    """Refuses a monitor's options that make no sense.

    Raises:
        ValueError: one line that names the option and what is allowed.
    """
    if cfg.monitor_interval < 1:
        raise ValueError(f"--monitor-interval {cfg.monitor_interval} is not a number from 1 on")
    if not 0 <= cfg.collapse_threshold < 1:
        raise ValueError(
            f"--collapse-threshold {cfg.collapse_threshold} is not a share from 0 to below 1"
        )


class MonitoredCriterion(FairseqCriterion):
    """What a monitored criterion adds to fairseq's, which comes after it in the bases."""

    _session: "MonitoredTraining | None" = None

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> "MonitoredCriterion":
        """Builds fairseq's criterion; the monitors wait for the first forward pass of training.

        Raises:
            ValueError: options that make no sense, in one line.
        """
        check_options(cfg)
        criterion: MonitoredCriterion = super().build_criterion(cfg, task)
        criterion.cfg = cfg
        return criterion

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> tuple[Any, Any, Any]:
        """As fairseq's criterion; in training the monitors look on."""
        if not self.training:
            return super().forward(model, sample, reduce)
        if self._session is None:
            self._session = MonitoredTraining(self.cfg, self.task, model)
        session = self._session
        if isinstance(error := sys.exception(), FloatingPointError):
            # fairseq goes through the update again to find where it stopped being finite, with
            # hooks that PyTorch no longer takes on an encoder.
            session.nonfinite.end(error)
        with session.monitor.forward(session.start()) as add:
            loss, sample_size, logging_output = super().forward(model, sample, reduce)
        add(loss, logging_output["loss"], sample_size)
        session.nonfinite.watch(loss)
        return loss, sample_size, logging_output


class MonitoredTraining:
    """The monitors of one training: where their samples go, and what a collapse leads to.

    Args:
        cfg: a criterion's config with the fields of `MonitorConfig`, part of fairseq's.
        task: the training's task.
        model: what is trained, in whatever fairseq has wrapped it.

    Raises:
        ValueError: the model cannot be monitored, or the save directory has another model's file.
    """

    def __init__(self, cfg: Any, task: Any, model: Any) -> None:
        while not isinstance(model, BaseFairseqModel):
            model = model.module
        self._cfg = cfg
        self._task = task
        self._stop_at_once = False
        self.monitor = Monitor(
            model, cfg.monitor_interval, cfg.monitor_sigma_error, self._on_sample
        )
        self._log = SampleLog(self.monitor)
        self._watch = CollapseWatch(self.monitor.attentions, cfg.collapse_threshold)
        self.nonfinite = NonFinite(
            model,
            skip=cfg.on_nonfinite == "skip",
            scaled=cfg.fp16 or cfg.amp,
            on_skip=self._skipped,
            on_end=self._end,
        )
        alone = not torch.distributed.is_initialized()
        self._is_master = alone or distributed.get_data_parallel_rank() == 0
        if self._is_master:
            options = _options(cfg)
            run = {"architecture": options["model"]["_name"], "options": options}
            self._writer = RecordWriter(
                Path(cfg.save_dir), self.monitor.names(), run, self.monitor.dtype
            )

    def start(self) -> int:
        """Begins a forward pass; returns the number of the update, counted from 0."""
        if self._stop_at_once:
            raise SystemExit(COLLAPSED)
        self._log.repeat()
        self.nonfinite.forget()
        return _updates_made()

    def _end(self, what: str) -> None:
        for line in self._watch.nonfinite(_updates_made(), what):
            logger.warning(line)
        if self._cfg.on_collapse == "stop":
            raise SystemExit(COLLAPSED)

    def _skipped(self, what: str) -> None:
        self.monitor.drop()
        count = self.nonfinite.count
        # On every worker: each has micro-batches of its own.
        logger.warning("update %d: %s; left out, %d so far", _updates_made(), what, count)
        metrics.log_scalar("nonfinite", count, weight=0, round=0, priority=2000)

    def _on_sample(self, record: np.ndarray) -> None:
        if self._is_master:
            self._writer.append(record)
        self._log.show(record)
        if self._cfg.on_collapse == "ignore":
            return
        found = self._watch.look(record)
        self._say(found)
        if found and self._cfg.on_collapse == "stop":
            self._stop(int(record["update"]) + 1)

    def _say(self, lines: list[str]) -> None:
        if self._is_master and self._cfg.on_collapse != "ignore":
            for line in lines:
                logger.warning(line)

    def _stop(self, updates: int) -> None:
        """Lets fairseq end after these updates as it ends at --max-update, with a checkpoint."""
        if self._cfg.no_save:
            self._stop_at_once = True
            return
        self._cfg._get_root().optimization.max_update = updates
        if self._is_master:
            # fairseq calls it when the checkpoint is complete, on the worker that wrote it.
            self._task.post_save = self._exit

    def _exit(self, checkpoint: str, updates: int) -> None:
        logger.warning("stopped by --on-collapse stop, with %s", checkpoint)
        if torch.distributed.is_initialized():
            # The other workers wait here before they end.
            torch.distributed.barrier(distributed.get_global_group())
        raise SystemExit(COLLAPSED)


def _options(cfg: Any) -> dict[str, Any]:
    """Section → option → value, of the whole that the config of a criterion is a part of."""
    options: Any = OmegaConf.to_container(cfg._get_root(), resolve=True, enum_to_str=True)
    known = {name for section in options.values() if isinstance(section, dict) for name in section}
    for section, content in options.items():
        if isinstance(content, Namespace):
            # A task without a dataclass has the whole command line: only its own options are new.
            own = {name: value for name, value in vars(content).items() if name not in known}
            options[section] = {"_name": content._name, **own}
    return options


def _updates_made() -> int:
    """As fairseq's trainer has logged it; a criterion is not told."""
    # Meters named by metrics.get_meter are those of a checkpoint after a resume, and stand still.
    active = metrics.get_active_aggregators()
    values = [meters["num_updates"].val for meters in active if "num_updates" in meters]
    return int(max((value for value in values if value is not None), default=0))


def _register(name: str, criterion: type[FairseqCriterion], config: type[FairseqDataclass]) -> None:
    """Registers `monitored_<name>`: a criterion of fairseq with the monitors."""
    options = dataclasses.make_dataclass(
        f"monitored_{name}_config", [], bases=(MonitorConfig, config)
    )
    doc = f"fairseq's {name} with the monitors; see `MonitoredCriterion`."
    monitored = type(f"monitored_{name}", (MonitoredCriterion, criterion), {"__doc__": doc})
    register_criterion(f"monitored_{name}", dataclass=options)(monitored)


_register(
    "label_smoothed_cross_entropy",
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
_register("adaptive_loss", AdaptiveLoss, AdaptiveLossConfig)
_register("ctc", CtcCriterion, CtcCriterionConfig)
