"""The demo from an empty folder to its table and its report page."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from sigma_fairseq.demo.corpus import LANGUAGES, Corpus, build_corpus, load_corpus
from sigma_fairseq.demo.settings import HOT, Settings
from sigma_fairseq.sweep.processes import SweepError, run_jobs
from sigma_fairseq.sweep.progress import Progress
from sigma_fairseq.sweep.run import locked, run_sweep
from sigma_fairseq.sweep.settings import Sweep, make_sweep

NEEDED = ("fairseq", "matplotlib", "sacrebleu", "sentencepiece")


def run_demo(out: Path, settings: Settings, jobs: int, stream: TextIO) -> str:
    """Trains and evaluates every method of the settings; what is finished already is not redone.

    Args:
        out: folder of everything the demo writes, in `seed<N>`: `data`, `runs`, a sweep's folder,
            and `report`.
        settings: what to train, and on what.
        jobs: trainings at the same time.
        stream: where progress is shown.

    Returns:
        The sweep's table, with what was trained above it and the report's page below.

    Raises:
        SweepError: something failed; its text says what, and where to read on.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SweepError(f"the demo needs {' and '.join(missing)}, which is not installed")
    if os.pathsep in str(out):
        raise SweepError(f"fairseq takes {os.pathsep} in {out} for the end of a path: use another")
    folder = out / f"seed{settings.seed}"
    with locked(folder) as lock:
        corpus = load_corpus(folder / "data", settings)
        if corpus is None:
            Progress(stream).say("writing number words, learning BPE, fairseq-preprocess")
            run_jobs([build_corpus(folder / "data", settings)], [{}], lambda: None, (lock,))
            corpus = load_corpus(folder / "data", settings)
            assert corpus is not None
        sweep = _sweep(settings, corpus, folder, jobs)
        tables, failures = run_sweep(sweep, stream)
        if failures:
            raise SweepError("\n".join(failures))
        page = _report(sweep, folder / "report")
    return f"{_heading(settings, corpus)}\n\n{tables}\n\nReport: {page}"


def _sweep(settings: Settings, corpus: Corpus, folder: Path, jobs: int) -> Sweep:
    sizes = {}
    for stack in ("encoder", "decoder"):
        sizes[f"{stack}-embed-dim"] = settings.width
        sizes[f"{stack}-ffn-embed-dim"] = settings.feed_forward
        sizes[f"{stack}-attention-heads"] = settings.heads
    options = {
        "task": "translation",
        "source-lang": LANGUAGES[0],
        "target-lang": LANGUAGES[1],
        **sizes,
        "share-all-embeddings": True,
        "dropout": 0,
        "criterion": "monitored_label_smoothed_cross_entropy",
        "optimizer": "adam",
        "adam-betas": "(0.9, 0.98)",
        "lr-scheduler": "fixed",
        "batch-size": settings.sentences_per_update,
        "max-update": settings.updates,
        "cpu": True,
        # One checkpoint at the end of each epoch, which fairseq moves into place when it is
        # complete; with validation there would be a second one, copied over the first.
        "no-epoch-checkpoints": True,
        "disable-validation": True,
    }
    generation = {
        "beam": 1,
        "post-process": "sentencepiece",
        "batch-size": 250,
        # A model that has not learned when to stop need not go on for long.
        "max-len-a": 0,
        "max-len-b": 2 * corpus.longest_target,
    }
    content = {
        "data": os.path.relpath(corpus.binary, folder),
        "out": "runs",
        "options": options,
        "methods": settings.methods,
        "grid": {"lr": [HOT]},
        "seeds": [settings.seed],
        # A German number is one word: BLEU is on characters.
        "evaluate": {"score": "bleu", "tokenize": "char", "options": generation},
        "jobs": jobs,
    }
    return make_sweep(content, folder, "demo")


def _report(sweep: Sweep, out: Path) -> Path:
    # matplotlib takes its time: not before the trainings have ended.
    from sigma_fairseq.report.page import write_report

    return write_report([sweep.out / point.name for point in sweep.points], out).page


def _heading(settings: Settings, corpus: Corpus) -> str:
    return (
        f"English number words to German ones, seed {settings.seed}. Every model: width "
        f"{settings.width}, the same {settings.train_pairs:,} pairs,\n"
        f"{settings.updates} updates of {settings.sentences_per_update} sentences in the same "
        "order, Adam at a constant learning rate from the first update on.\n"
        f"Who knows how frequent each token is, and nothing else, has a loss of "
        f"{corpus.unigram_loss:.2f}."
    )
