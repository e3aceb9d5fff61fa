"""The demo from an empty folder to its table."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from sigma_fairseq.demo.corpus import build_corpus, load_corpus
from sigma_fairseq.demo.processes import DemoError, Job, run_jobs
from sigma_fairseq.demo.progress import Progress
from sigma_fairseq.demo.settings import Settings
from sigma_fairseq.demo.table import make_table
from sigma_fairseq.demo.training import Training

NEEDED = ("fairseq", "sentencepiece", "sacrebleu")


def run_demo(out: Path, settings: Settings, at_once: int, stream: TextIO) -> str:
    """Trains and evaluates every contender of the settings; what is finished already is not redone.

    Args:
        out: folder of everything the demo writes: `seed<N>/data`, a folder for each contender and
            `seed<N>/table.txt`.
        settings: what to train, and on what.
        at_once: trainings at the same time, with one thread each.
        stream: where progress is shown.

    Returns:
        The table.

    Raises:
        DemoError: something failed; its text says what, and where to read on.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise DemoError(f"the demo needs {' and '.join(missing)}, which is not installed")
    if os.pathsep in str(out):
        raise DemoError(f"fairseq takes {os.pathsep} in {out} for the end of a path: use another")
    progress = Progress(stream)
    folder = out / f"seed{settings.seed}"
    with _locked(folder) as lock:
        corpus = load_corpus(folder / "data", settings)
        if corpus is None:
            progress.say("writing number words, learning BPE, fairseq-preprocess")
            run_jobs([build_corpus(folder / "data", settings)], 1, lambda: None, (lock,))
            corpus = load_corpus(folder / "data", settings)
            assert corpus is not None
        trainings = [
            Training(contender, settings, corpus, folder / contender.folder_name)
            for contender in settings.contenders
        ]
        active: list[Training] = []
        run_jobs(
            [_announced(training, settings, active, progress) for training in trainings],
            at_once,
            lambda: progress.status(_status(active, settings)),
            (lock,),
        )
        progress.end_line()
        rows = [
            (training.contender, result, training.folder)
            for training in trainings
            if (result := training.result()) is not None
        ]
        table = make_table(settings, corpus.unigram_loss, rows)
        (folder / "table.txt").write_text(table + "\n", encoding="utf-8")
    return table


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Holds a folder against a second demo, also while a process that got the lock lives on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise DemoError(f"cannot write to {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoError(f"another demo, or what it left, is at work in {folder}") from error
        yield file.fileno()


def _announced(
    training: Training, settings: Settings, active: list[Training], progress: Progress
) -> Job:
    """The training's job, with a line when it starts, when it ends and when there is no need."""
    if training.result() is not None:
        progress.say(f"{training.contender}: finished before, in {training.folder}")
        return
    progress.say(f"{training.contender}: {settings.updates} updates, log in {training.log}")
    active.append(training)
    yield from training.job()
    active.remove(training)
    result = training.result()
    assert result is not None
    if result.loss is None:
        progress.say(f"{training.contender}: diverged after {result.diverged_after}+ updates")
    else:
        progress.say(
            f"{training.contender}: loss {result.loss:.3f}, exact match {result.exact_match:.1%}"
        )


def _status(active: list[Training], settings: Settings) -> str:
    parts = []
    for training in active:
        updates, loss = training.progress()
        shown = "" if loss is None else f" loss {loss:.3f}"
        parts.append(f"{training.contender}: {updates}/{settings.updates}{shown}")
    return " | ".join(parts)
