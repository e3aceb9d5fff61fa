#!/usr/bin/env python3
"""Joins recordings of single digits to utterances, a corpus in the layout of LibriSpeech.

    spoken_digits.py recordings.tar OUT

reads files ``DIGIT_SPEAKER_N.wav``, from an archive or from a folder, and writes utterances of 3 to
7 recordings of one speaker, 16 kHz FLAC, and their transcripts in words:

    OUT/train-clean-100/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac   N from 10 on
    OUT/train-clean-100/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt
    OUT/dev-clean/...                                               N from 5 to 9
    OUT/test-clean/...                                              N from 0 to 4, the official test
    OUT/test-other/...                                              the same of a speaker left out

No recording is in two sets, and the speaker left out is in the last one only. Each recording is
used once a chapter, every time with other neighbours; speakers are numbered by their names' order.
The same recordings and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

RATE = 16000
PAUSE = 0.05, 0.3
"""Shortest and longest pause between two recordings, in seconds."""
NOISE = 1e-3
"""Standard deviation of the noise in a pause, as a share of the utterance's largest sample."""
DIGITS = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"]
NAME = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")


class RecordingError(Exception):
    """Recordings that make no corpus; its message is one line for the user."""


@dataclass(frozen=True)
class Recording:
    """One spoken digit."""

    digit: int
    number: int
    samples: NDArray[np.float32]


@dataclass(frozen=True)
class Set:
    """Which recordings are in a set, and the chapters, in each of which all of them are."""

    name: str
    numbers: range
    left_out: bool
    chapters: range


def files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file in a folder or tar archive."""
    if source.is_dir():
        yield from ((path.name, path.read_bytes()) for path in source.iterdir() if path.is_file())
        return
    with tarfile.open(source) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream is not None:
                yield PurePosixPath(member.name).name, stream.read()


def read_recordings(source: Path) -> dict[str, list[Recording]]:
    """The recordings of each speaker at 16 kHz, in the order of speaker, digit and number.

    Raises:
        RecordingError: the source cannot be read, a recording is damaged, or there are none.
    """
    speakers: dict[str, list[Recording]] = defaultdict(list)
    try:
        for name, content in files(source):
            if found := NAME.fullmatch(name):
                samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
                audio = resample(torch.from_numpy(samples.mean(axis=1)), rate, RATE).numpy()
                speakers[found[2]].append(Recording(int(found[1]), int(found[3]), audio))
    except soundfile.LibsndfileError as error:
        raise RecordingError(f"{source}: {name}: {error.error_string}") from None
    except tarfile.TarError:
        raise RecordingError(f"{source}: neither a folder nor a readable tar archive") from None
    except OSError as error:
        raise RecordingError(f"{source}: {error.strerror}") from None
    if not speakers:
        raise RecordingError(f"{source}: no recordings named DIGIT_SPEAKER_N.wav")
    for recordings in speakers.values():
        recordings.sort(key=lambda recording: (recording.digit, recording.number))
    return dict(sorted(speakers.items()))


def group_sizes(count: int, random: np.random.Generator) -> Iterator[int]:
    """Sizes from 3 to 7 that sum to `count`, which must be 3 or more."""
    while count:
        size = random.choice([n for n in range(3, 8) if count == n or count >= n + 3])
        yield int(size)
        count -= size


def join(recordings: Sequence[Recording], random: np.random.Generator) -> NDArray[np.float32]:
    """One utterance, with a pause between every two recordings.

    The pauses are of quiet noise, since digital silence, which no microphone gives, lies so far
    below all speech on a logarithmic scale that it would dominate the normalization of features.
    """
    noise = NOISE * max(np.abs(recording.samples).max() for recording in recordings)
    pieces = [recordings[0].samples]
    for recording in recordings[1:]:
        length = int(random.uniform(*PAUSE) * RATE)
        pieces += [noise * random.standard_normal(length, np.float32), recording.samples]
    return np.concatenate(pieces)


def write_chapter(
    folder: Path, recordings: Sequence[Recording], random: np.random.Generator
) -> tuple[int, float]:
    """Joins the recordings in random order and writes utterances and transcripts.

    Args:
        folder: ``SET/SPEAKER/CHAPTER``.

    Returns:
        The number of utterances, and seconds.
    """
    folder.mkdir(parents=True)
    chapter = f"{folder.parent.name}-{folder.name}"
    order = iter(random.permutation(len(recordings)))
    lines, seconds = [], 0.0
    for index, size in enumerate(group_sizes(len(recordings), random)):
        group = [recordings[next(order)] for _ in range(size)]
        utterance = join(group, random)
        soundfile.write(folder / f"{chapter}-{index:04}.flac", utterance, RATE, subtype="PCM_16")
        words = " ".join(DIGITS[recording.digit] for recording in group)
        lines.append(f"{chapter}-{index:04} {words}\n")
        seconds += len(utterance) / RATE
    (folder / f"{chapter}.trans.txt").write_text("".join(lines), encoding="utf-8")
    return len(lines), seconds


def write_set(
    corpus: Path, part: Set, speakers: dict[str, list[Recording]], left_out: str, seed: int
) -> str:
    """Writes one set and says in one line what is in it.

    Raises:
        RecordingError: a speaker has too few recordings for it.
    """
    random = np.random.default_rng([seed, *part.name.encode()])
    utterances, seconds = 0, 0.0
    for speaker, (name, recordings) in enumerate(speakers.items(), start=1):
        if (name == left_out) != part.left_out:
            continue
        chosen = [recording for recording in recordings if recording.number in part.numbers]
        if len(chosen) < 3:
            raise RecordingError(f"{part.name}: only {len(chosen)} recordings of {name}")
        for chapter in part.chapters:
            folder = corpus / part.name / str(speaker) / str(chapter)
            more = write_chapter(folder, chosen, random)
            utterances, seconds = utterances + more[0], seconds + more[1]
    return f"{part.name}: {utterances:,} utterances, {seconds / 60:.1f} minutes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description="Joins recordings of digits to a corpus in the layout of LibriSpeech."
    )
    parser.add_argument("recordings", type=Path, help="a tar archive or a folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    parser.add_argument("--left-out", metavar="SPEAKER", help="default: the last by name")
    parser.add_argument("--train-passes", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    options = parser.parse_args(arguments)
    sets = [
        Set("train-clean-100", range(10, sys.maxsize), False, range(options.train_passes)),
        # The names of utterances are unique over all sets, as in LibriSpeech.
        Set("dev-clean", range(5, 10), False, range(100, 104)),
        Set("test-clean", range(5), False, range(200, 204)),
        Set("test-other", range(5), True, range(300, 304)),
    ]
    out = options.out.resolve()
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        if out.exists():
            raise RecordingError(f"{out} exists; move it away or name another folder")
        speakers = read_recordings(options.recordings)
        left_out = options.left_out or list(speakers)[-1]
        if left_out not in speakers:
            raise RecordingError(f"no speaker {left_out}; there are {', '.join(speakers)}")
        for each in sets:
            print(write_set(part, each, speakers, left_out, options.seed), flush=True)
        part.rename(out)
    except RecordingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
