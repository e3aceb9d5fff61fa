"""What tells the runs apart, as rows of text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sigma_fairseq.report.runs import Run
from sigma_fairseq.report.series import lowest_layer

UNKNOWN = "–"

# Different in any two runs, and no reason for anything that a figure shows.
_OF_THE_PLACE = {
    "save_dir",
    "log_file",
    "tensorboard_logdir",
    "distributed_init_method",
    "distributed_port",
}


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """As few last parts of each path as tell all of them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names


def compare(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Column titles and a row a run: how far it came, and the options in which runs differ."""
    titles = ["architecture", "last update", "last loss (bits)", "lowest layer entropy (nats)"]
    rows = [[run.architecture or UNKNOWN, _progress(run), _loss(run), _lowest(run)] for run in runs]
    for title, values in _differing(runs).items():
        titles.append(title)
        for row, value in zip(rows, values, strict=True):
            row.append(value)
    return titles, rows


def shared_options(runs: Sequence[Run]) -> dict[str, str]:
    """The options that are set to the same value in all runs that recorded theirs."""
    texts = _texts(runs)
    return {
        key: values[0]
        for key, values in texts.items()
        if len(set(values)) == 1 and values[0] != UNKNOWN
    }


def _texts(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Option → its value in each run that recorded any."""
    recorded = [run.options for run in runs if run.options]
    keys = sorted({key for options in recorded for key in options})
    return {
        key: [_text(options.get(key)) for options in recorded]
        for key in keys
        if key.rpartition(".")[2] not in _OF_THE_PLACE
    }


def _differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Short title → a value a run. fairseq repeats options in several sections: once is enough."""
    architectures = [run.architecture for run in runs if run.options]
    found: dict[tuple[str, tuple[str, ...]], str] = {}
    for key, texts in _texts(runs).items():
        if len(set(texts)) > 1 and texts != architectures:
            section, _, name = key.rpartition(".")
            found.setdefault((section if name == "_name" else name, tuple(texts)), key)
    names = [name for name, _ in found]
    columns = {}
    for (name, values), key in found.items():
        given = iter(values)
        title = name if names.count(name) == 1 else key
        columns[title] = [next(given) if run.options else UNKNOWN for run in runs]
    return columns


def _text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _progress(run: Run) -> str:
    asked = run.options.get("optimization.max_update")
    of_all = f" of {asked:,}" if isinstance(asked, int) and asked else ""
    return f"{run.updates[-1]:,}{of_all}"


def _loss(run: Run) -> str:
    return _figure(float(run.losses[-1]))


def _lowest(run: Run) -> str:
    lowest = lowest_layer(run)
    if lowest is None:
        return UNKNOWN
    entropy, attention = lowest
    return f"{_figure(entropy)} ({attention.kind}, layer {attention.layer})"


def _figure(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "not finite"
