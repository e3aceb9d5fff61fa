#!/usr/bin/env python3
"""Makes the data folder of the task ctc_speech from LibriSpeech, or from a corpus laid out like it.

    librispeech_manifests.py CORPUS OUT [--features] [--strict]

reads ``CORPUS/SET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac`` and ``SPEAKER-CHAPTER.trans.txt``
and writes ``OUT/config.yaml``, ``OUT/dict.txt`` and a manifest ``OUT/SET.tsv`` for each of the
seven sets that is there, on all cores. Every utterance is decoded once: one that is unfit for
training with CTC is left out, counted and named. A set whose manifest is there already is not read
again, and a manifest appears only when its set is done.
"""

from __future__ import annotations

import argparse
import io
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
import yaml
from tqdm import tqdm

from sigma_fairseq.layers.front_end import subsampled_length
from sigma_fairseq.speech.checks import Faults, ctc_frames, describe
from sigma_fairseq.speech.dictionary import WORD_BOUNDARY, LetterDictionary
from sigma_fairseq.speech.features import AudioError, log_mel

SETS = (
    *("train-clean-100", "train-clean-360", "train-other-500"),
    *("dev-clean", "dev-other", "test-clean", "test-other"),
)
LETTERS = string.ascii_lowercase + "'" + WORD_BOUNDARY
HEADER = "id\taudio\tn_frames\ttgt_text\tspeaker\n"
CONFIG = {
    "input_feat_per_channel": 80,
    "sample_rate": 16000,
    "shuffle": True,
    "feature_transforms": {"*": ["utterance_norm"], "_train": ["utterance_norm", "specaugment"]},
    "specaugment": {
        "freq_mask_N": 2,
        "freq_mask_F": 30,
        "time_mask_N": 10,
        "time_mask_T": 50,
        "time_mask_p": 0.1,
        "mask_value": 0.0,
    },
}
BLOCK = 1024
"""Utterances whose features may wait in memory to be written: half a GB at 15 s each."""


class CorpusError(Exception):
    """A corpus that cannot be used; its message is one line for the user."""


@dataclass(frozen=True)
class Utterance:
    """A transcript and its recording, one of which may be missing."""

    name: str
    audio: Path | None
    text: str | None


@dataclass(frozen=True)
class Checked:
    """What came of decoding an utterance: a fault, or frames and perhaps their features."""

    fault: str = ""
    frames: int = 0
    features: bytes = b""


def read_set(folder: Path) -> list[Utterance]:
    """Every utterance that has a recording or a transcript, in the order of names.

    Raises:
        CorpusError: a transcript cannot be read, or there is nothing in the folder.
    """
    audio = {path.stem: path for path in folder.rglob("*.flac")}
    texts: dict[str, str] = {}
    for path in folder.rglob("*.trans.txt"):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"{path}: {error}") from None
        for line in lines:
            name, _, text = line.partition(" ")
            texts[name] = text.lower()
    names = sorted(audio.keys() | texts.keys())
    if not names:
        raise CorpusError(f"{folder}: neither .flac nor .trans.txt files in it")
    return [Utterance(name, audio.get(name), texts.get(name)) for name in names]


def check(utterance: Utterance, dictionary: LetterDictionary, store: bool) -> Checked:
    """Decodes an utterance and says what is wrong with it.

    Args:
        utterance: recording and transcript.
        dictionary: the letters that a transcript may have.
        store: whether to return the features, as the bytes of a .npy file.
    """
    if utterance.audio is None:
        return Checked("no recording")
    if utterance.text is None:
        return Checked("no transcript")
    if not utterance.text.strip():
        return Checked("empty transcript")
    try:
        labels = dictionary.labels(utterance.text)
    except ValueError:
        return Checked("letters outside a-z and '")
    try:
        features = log_mel(str(utterance.audio))
    except AudioError:
        return Checked("unreadable")
    if subsampled_length(len(features)) < ctc_frames(labels):
        return Checked("too short for the transcript")
    if features.min() == features.max():
        return Checked("silent")
    stream = io.BytesIO()
    if store:
        np.save(stream, features)
    return Checked("", len(features), stream.getvalue())


def check_all(
    utterances: Sequence[Utterance], pool: Executor, dictionary: LetterDictionary, store: bool
) -> Iterator[Checked]:
    """`check` of every utterance, in their order, by all processes of the pool."""
    work = partial(check, dictionary=dictionary, store=store)
    for start in range(0, len(utterances), BLOCK):
        yield from pool.map(work, utterances[start : start + BLOCK], chunksize=16)


@contextmanager
def feature_archive(path: Path) -> Iterator[Callable[[str, bytes], str]]:
    """A new uncompressed archive, which is there under its name only when all is in it.

    Yields:
        A function from a name and the bytes of a .npy file to fairseq's ``FILE:OFFSET:LENGTH``.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream, ZipFile(stream, "w") as archive:

            def add(name: str, features: bytes) -> str:
                archive.writestr(f"{name}.npy", features)
                return f"{path.name}:{stream.tell() - len(features)}:{len(features)}"

            yield add
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def write_set(
    name: str, options: argparse.Namespace, pool: Executor, dictionary: LetterDictionary
) -> None:
    """Writes the manifest of one set, and where asked its features, and says what is in it.

    Args:
        name: of the set.
        options: the command line.
        pool: processes that decode.
        dictionary: the letters that a transcript may have.

    Raises:
        CorpusError: no utterance is fit, or any is unfit under ``--strict``.
    """
    utterances = read_set(options.corpus / name)
    faults: Faults = []
    rows, frames = [HEADER], 0
    checked = check_all(utterances, pool, dictionary, options.features)
    progress = tqdm(checked, desc=name, total=len(utterances), unit="utterance", disable=None)
    archive = feature_archive(options.out / f"{name}.zip") if options.features else nullcontext()
    with archive as add:
        for utterance, result in zip(utterances, progress, strict=True):
            if result.fault or utterance.audio is None or utterance.text is None:
                faults.append((utterance.name, result.fault))
                continue
            audio = str(utterance.audio.relative_to(options.corpus))
            if add is not None:
                audio = add(utterance.name, result.features)
            words, speaker = " ".join(utterance.text.split()), utterance.name.partition("-")[0]
            rows.append(f"{utterance.name}\t{audio}\t{result.frames}\t{words}\t{speaker}\n")
            frames += result.frames
        unfit = f"{len(faults):,} of {len(utterances):,} unfit: {describe(faults)}"
        if faults and (options.strict or len(rows) == 1):
            raise CorpusError(f"{name}: {unfit}")
    if faults:
        print(f"{name}: left out {unfit}", flush=True)
    write(options.out / f"{name}.tsv", "".join(rows))
    print(f"{name}: {len(rows) - 1:,} utterances, {frames / 360_000:.2f} hours", flush=True)


def write(path: Path, text: str) -> None:
    """Writes a file that is there with all its text or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.rename(path)


def prepare(options: argparse.Namespace) -> None:
    """Makes what is missing of the data folder.

    Raises:
        CorpusError: sets are missing, or the folder was made from something else.
    """
    sets = [name for name in SETS if (options.corpus / name).is_dir()]
    for kind in ("train", "dev"):
        if not any(name.startswith(kind) for name in sets):
            wanted = " or ".join(name for name in SETS if name.startswith(kind))
            raise CorpusError(f"{options.corpus}: no {wanted} in it")
    audio_root = str((options.out if options.features else options.corpus).resolve())
    options.out.mkdir(parents=True, exist_ok=True)
    config = options.out / "config.yaml"
    if config.exists():
        found = yaml.safe_load(config.read_text(encoding="utf-8"))["audio_root"]
        if found != audio_root:
            raise CorpusError(
                f"{options.out} was begun with another corpus, or with and now without --features: "
                f"its audio_root is {found}, not {audio_root}"
            )
    else:
        write(config, yaml.safe_dump({"audio_root": audio_root, **CONFIG}, sort_keys=False))
    letters = options.out / "dict.txt"
    write(letters, "".join(f"{letter} 1\n" for letter in LETTERS))
    dictionary = LetterDictionary.read(letters)
    with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for name in sets:
            if (options.out / f"{name}.tsv").exists():
                print(f"{name}: there already", flush=True)
            else:
                write_set(name, options, pool, dictionary)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Makes a data folder of ctc_speech.")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="laid out like LibriSpeech")
    parser.add_argument("out", type=Path, metavar="OUT", help="the data folder")
    parser.add_argument(
        "--features", action="store_true", help="store log-mel features, in OUT/SET.zip"
    )
    parser.add_argument("--strict", action="store_true", help="an unfit utterance is an error")
    try:
        prepare(parser.parse_args(arguments))
    except (CorpusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
