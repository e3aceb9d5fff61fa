"""One training of a sweep: a folder, fairseq-train in it, and what its log says."""

import json
import math
import os
import re
import shutil
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sigma_fairseq.sweep.commands import fairseq_command
from sigma_fairseq.sweep.evaluation import Scores, evaluation_commands, read_scores
from sigma_fairseq.sweep.processes import Command, CommandFailedError, Job, SweepError
from sigma_fairseq.sweep.settings import Point, Sweep

LOGGED_POINTS = 40
#: fairseq's own log interval, for long trainings.
LONGEST_LOG_INTERVAL = 100
#: The final loss is the mean over this part of the updates, the last ones.
FINAL_PART = 1 / 8
#: Exit status of a training that the monitors stopped.
STOPPED = 3

_LOGGED = re.compile(r"\| train_inner \| (\{[^{}]*\})")


@dataclass(frozen=True)
class Result:
    """What came of a training.

    Attributes:
        outcome: "finished", "not finite" (fairseq gave up on its gradients) or "stopped" (by the
            monitors).
        losses: (update, mean loss of the updates since the one before, in bits a token).
        scores: subset → score, of a training that finished.
        signature: sacreBLEU's account of how BLEU was computed.
    """

    outcome: str
    losses: list[tuple[int, float]]
    scores: dict[str, float] = field(default_factory=dict)
    signature: str = ""

    @property
    def final_loss(self) -> float:
        """Mean loss of the last eighth of the updates; NaN where training did not finish."""
        if self.outcome != "finished":
            return math.nan
        first = self.losses[-1][0] * (1 - FINAL_PART)
        final = [loss for update, loss in self.losses if update > first]
        return sum(final) / len(final)


class Training:
    """A point of a sweep in its folder, which holds checkpoints, logs and, at last, the result."""

    def __init__(self, point: Point, sweep: Sweep) -> None:
        self.point = point
        self.folder = sweep.out / point.name
        self.log = self.folder / "train.log"
        self._data = sweep.data
        self._evaluation = sweep.evaluation

    def job(self) -> Job:
        """The commands that are still needed to have a result."""
        record = self._record()
        if record is None:
            self._make_room()
            outcome = yield from self._train()
            record = {"outcome": outcome, "losses": self._logged_losses()}
            if outcome == "finished" and not record["losses"]:
                raise SweepError(f"{self.log} has no loss: give a shorter log-interval")
            write_json(self.folder / "result.json", record)
        evaluation = asdict(self._evaluation)
        if record.get("evaluation") == evaluation:
            return
        scores = Scores({})
        if record["outcome"] == "finished" and self._evaluation.score != "none":
            yield from evaluation_commands(
                self._evaluation, self.point.options, self._data, self.folder
            )
            scores = read_scores(self._evaluation, self.point.options, self.folder)
        record |= {"evaluation": evaluation, **scores._asdict()}
        write_json(self.folder / "result.json", record)

    def result(self) -> Result | None:
        """The result of exactly these settings, or None if there is none yet."""
        record = self._record()
        if record is None or record.pop("evaluation", None) != asdict(self._evaluation):
            return None
        losses = [(update, loss) for update, loss in record.pop("losses")]
        return Result(losses=losses, **record)

    def progress(self) -> tuple[int, float | None]:
        """Updates made and the loss of the latest, from the log."""
        losses = self._logged_losses()
        return losses[-1] if losses else (0, None)

    def _settings(self) -> dict[str, Any]:
        """All that the training depends on."""
        return {
            "data": os.path.relpath(self._data, self.folder.parent),
            "bytes": {file.name: file.stat().st_size for file in sorted(self._data.glob("*.*"))},
            "seed": self.point.seed,
            "options": dict(self.point.options),
        }

    def _record(self) -> dict[str, Any] | None:
        """What the last attempt with these settings has left, if it got to the end of training."""
        if _read_json(self.folder / "options.json") != self._settings():
            return None
        return _read_json(self.folder / "result.json")

    def _make_room(self) -> None:
        """Leaves a folder that training can start in or, with the same settings, go on in."""
        if self.folder.exists():
            recorded = _read_json(self.folder / "options.json")
            if recorded is None:
                raise SweepError(f"{self.folder} is not of a sweep's making: give another out")
            if recorded != self._settings():
                shutil.rmtree(self.folder)
        if not self.folder.exists():
            partial = self.folder.with_name(self.folder.name + ".partial")
            partial.mkdir(parents=True, exist_ok=True)
            write_json(partial / "options.json", self._settings())
            partial.rename(self.folder)

    def _train(self) -> Generator[Command, None, str]:
        """Trains, and returns the outcome; see `Result`."""
        logged_before = self._log_text()
        # A sweep that was killed at the wrong moment has not put down that training had ended.
        if "| done training in " in logged_before:
            return "finished"
        try:
            yield Command("training", self._train_command(), self.log, append=True)
        except CommandFailedError as error:
            if error.status == STOPPED:
                return "stopped"
            if "\nFloatingPointError: " in self._log_text()[len(logged_before) :]:
                return "not finite"
            raise
        return "finished"

    def _train_command(self) -> list[str]:
        options = self.point.options
        updates = int(options.get("max-update", LOGGED_POINTS * LONGEST_LOG_INTERVAL))
        interval = min(max(1, updates // LOGGED_POINTS), LONGEST_LOG_INTERVAL)
        options = {
            "log-interval": interval,
            **options,
            "log-format": "json",
            "seed": self.point.seed,
            "save-dir": str(self.folder),
        }
        return fairseq_command("train", self._data, options)

    def _logged_losses(self) -> list[tuple[int, float]]:
        """(update, mean loss since the one logged before it). Of two attempts, the later counts."""
        points = [json.loads(point) for point in _LOGGED.findall(self._log_text())]
        return sorted({int(point["num_updates"]): float(point["loss"]) for point in points}.items())

    def _log_text(self) -> str:
        if not self.log.is_file():
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")


def write_json(file: Path, content: Any) -> None:
    """Writes a file that is either not there or complete."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(file)


def _read_json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
