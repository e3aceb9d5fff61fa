"""What is wrong with the rows of a manifest, found without reading audio, and how to say it."""

import functools
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from sigma_fairseq.layers.front_end import subsampled_length
from sigma_fairseq.speech.dictionary import LetterDictionary
from sigma_fairseq.speech.features import file_of

#: (id, reason) of each utterance that cannot be used.
Faults = list[tuple[str, str]]

#: How many ids of a reason a line has, unless it has to have all.
NAMED = 10


def ctc_frames(labels: Sequence[int]) -> int:
    """Frames that CTC needs for these labels: one each, and a blank between two that are equal."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def manifest_faults(
    rows: Sequence[Mapping[str, str]],
    paths: Sequence[str],
    dictionary: LetterDictionary,
    max_frames: int,
) -> dict[int, str]:
    """Finds the rows that cannot be used.

    Args:
        rows: of a manifest, with columns `n_frames` and `tgt_text`.
        paths: audio of each, as `read_features` takes it.
        dictionary: of the transcripts.
        max_frames: of an utterance.

    Returns:
        Number of the row → reason, in the order of the rows.
    """
    exists = functools.cache(os.path.isfile)
    faults = {}
    for number, (row, path) in enumerate(zip(rows, paths, strict=True)):
        reason = _row_fault(row, dictionary, max_frames)
        if reason is None and not exists(file_of(path)):
            reason = "missing"
        if reason is not None:
            faults[number] = reason
    return faults


def _row_fault(row: Mapping[str, str], dictionary: LetterDictionary, max_frames: int) -> str | None:
    try:
        frames = int(row["n_frames"])
    except (TypeError, ValueError):
        return "n_frames not a number"
    if frames < 1:
        return "n_frames below 1"
    if frames > max_frames:
        return "too long"
    try:
        labels = dictionary.labels(row["tgt_text"] or "")
    except ValueError:
        return "mislabelled"
    if subsampled_length(frames) < ctc_frames(labels):
        return "too short for its transcript"
    return None


def describe(faults: Faults, named: int | None = NAMED) -> str:
    """Counts by reason, with ids: `too long 1 (a), missing 12 (b, c, ..., k and 2 more)`.

    Args:
        faults: what to describe.
        named: how many ids of a reason at most; None for all.
    """
    by_reason = defaultdict(list)
    for name, reason in faults:
        by_reason[reason].append(name)
    parts = []
    for reason, names in by_reason.items():
        shown = names[:named]
        more = f" and {len(names) - len(shown):,} more" if len(shown) < len(names) else ""
        parts.append(f"{reason} {len(names):,} ({', '.join(shown)}{more})")
    return ", ".join(parts)
