"""A sweep from its settings to its tables."""

import fcntl
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from sigma_fairseq.sweep.options import check_options
from sigma_fairseq.sweep.processes import Job, SweepError, run_jobs
from sigma_fairseq.sweep.progress import Progress
from sigma_fairseq.sweep.settings import Sweep
from sigma_fairseq.sweep.table import (
    Row,
    is_learning_rate_sweep,
    make_rows,
    method_at,
    score_table,
    sensitivity_table,
)
from sigma_fairseq.sweep.training import Training, write_json


class Finished(NamedTuple):
    """What a sweep has come to.

    Attributes:
        tables: in Markdown.
        failures: one text for each training that could not go on, with the end of its log.
    """

    tables: str
    failures: list[str]


def run_sweep(sweep: Sweep, stream: TextIO) -> Finished:
    """Trains and evaluates every point of a sweep; what is finished already is not redone.

    Args:
        sweep: what to train. Each training has its folder in `sweep.out`, which also gets
            `table.md`, `results.json` and, with several learning rates, `learning_rate*.png`.
        stream: where progress is shown.

    Raises:
        SweepError: nothing could be started; its text says why.
    """
    if os.pathsep in f"{sweep.data}{sweep.out}":
        raise SweepError(f"fairseq takes {os.pathsep} for the end of a path: use other folders")
    check_options(sweep)
    progress = Progress(stream)
    trainings = [Training(point, sweep) for point in sweep.points]
    active: list[Training] = []
    failures: list[str] = []

    def watched(training: Training) -> Job:
        yield from _watched(training, active, failures, progress)
        _write_results(trainings, sweep)

    with locked(sweep.out) as lock:
        run_jobs(
            map(watched, trainings),
            places(sweep),
            lambda: progress.status(_status(active)),
            (lock,),
        )
        progress.end_line()
        rows, tables = _write_results(trainings, sweep)
        if is_learning_rate_sweep(rows):
            _draw_learning_rates(rows, sweep.out, progress)
    return Finished(tables, failures)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Holds a folder against a second sweep, also while a process that got the lock lives on.

    Yields:
        The descriptor of the lock, for `run_jobs` to pass on.

    Raises:
        SweepError: the folder cannot be written to, or another sweep is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise SweepError(f"cannot write to {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SweepError(f"another sweep, or what it left, is at work in {folder}") from error
        yield file.fileno()


def places(sweep: Sweep) -> list[Mapping[str, str]]:
    """The environment of each training that runs at the same time."""
    gpus = [] if all(point.options.get("cpu") for point in sweep.points) else _visible_gpus()
    count = sweep.jobs or len(gpus) or 1
    # As many threads as cores in each of several processes only get into each other's way.
    threads = {"OMP_NUM_THREADS": "1"} if count > 1 and "OMP_NUM_THREADS" not in os.environ else {}
    if not gpus:
        return [threads] * count
    return [{**threads, "CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} for place in range(count)]


def _visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each of them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def _watched(
    training: Training, active: list[Training], failures: list[str], progress: Progress
) -> Job:
    """The training's job, which reports what happens to it and does not stop the others."""
    name = training.point.name
    if training.result() is not None:
        progress.say(f"{name}: finished before")
        return
    progress.say(f"{name}: log in {training.log}")
    active.append(training)
    try:
        yield from training.job()
    except SweepError as error:
        failures.append(f"{name}: {error}")
        progress.say(f"{name}: failed")
    else:
        result = training.result()
        assert result is not None
        scores = "".join(f", {subset} {score:.2f}" for subset, score in result.scores.items())
        progress.say(f"{name}: {result.outcome}, loss {result.final_loss:.3f}{scores}")
    finally:
        active.remove(training)


def _status(active: list[Training]) -> str:
    parts = []
    for training in active:
        updates, loss = training.progress()
        last = training.point.options.get("max-update", "?")
        parts.append(
            f"{training.point.name}: {updates}/{last}"
            + ("" if loss is None else f" loss {loss:.3f}")
        )
    return " | ".join(parts)


def _write_results(trainings: list[Training], sweep: Sweep) -> tuple[list[Row], str]:
    """Writes the figures of the trainings that have any, so that they can be read on the way."""
    results = [(training.point, training.result()) for training in trainings]
    finished = [(point, result) for point, result in results if result is not None]
    rows = make_rows(finished, sweep.evaluation.score)
    tables = [score_table(rows, sweep)] if rows else []
    if is_learning_rate_sweep(rows):
        tables.append(sensitivity_table(rows))
    text = "\n\n".join(tables)
    (sweep.out / "table.md").write_text(text + "\n", encoding="utf-8")
    write_json(sweep.out / "results.json", [_record(row) for row in rows])
    return rows, text


def _draw_learning_rates(rows: list[Row], out: Path, progress: Progress) -> None:
    try:
        from sigma_fairseq.report.learning_rate import draw_learning_rates
    except ImportError as error:
        progress.say(f"no figure of the learning rates: {error}")
        return
    depths = {row.point.depth for row in rows}
    for depth in depths:
        of_depth = [row for row in rows if row.point.depth == depth]
        points = [
            (
                method_at(row.point, "lr"),
                float(row.point.options["lr"]),
                row.point.seed,
                row.result.final_loss,
            )
            for row in of_depth
        ]
        name = "learning_rate.png" if len(depths) == 1 else f"learning_rate-{depth}l.png"
        draw_learning_rates(points, of_depth[0].start_loss, out / name)


def _record(row: Row) -> dict[str, object]:
    """A training's figures; null where there is none, since JSON knows no NaN."""
    final = row.result.final_loss
    return {
        "name": row.point.name,
        "method": row.point.method,
        "depth": row.point.depth,
        "grid": dict(row.point.grid),
        "seed": row.point.seed,
        "outcome": row.result.outcome,
        "verdict": row.verdict,
        "updates": row.result.losses[-1][0] if row.result.losses else 0,
        "start_loss": row.start_loss,
        "final_loss": final if math.isfinite(final) else None,
        "scores": row.result.scores,
        "signature": row.result.signature,
    }
