"""The speech demo's data: numbers read by a synthesised speaker, for the task ctc_speech."""

import random
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from sigma_fairseq.demo.data_folder import begin_data, finish_data
from sigma_fairseq.demo.number_words import english
from sigma_fairseq.demo.settings import SpeechSettings
from sigma_fairseq.demo.synthetic_speech import RATE, synthesize
from sigma_fairseq.speech.dictionary import WORD_BOUNDARY
from sigma_fairseq.speech.features import MEL_BINS, frames_of

#: The numbers from 0 on that there are to read, each once.
NUMBERS = 1000
HEADER = ("id", "audio", "n_frames", "tgt_text", "speaker")
SYMBOLS = string.ascii_lowercase + "'" + WORD_BOUNDARY


def data_settings(settings: SpeechSettings) -> dict[str, Any]:
    """What the data depend on."""
    names = ("seed", "train_utterances", "valid_utterances", "test_utterances")
    return {name: getattr(settings, name) for name in names}


def write_speech(folder: Path, settings: SpeechSettings) -> None:
    """Writes audio, manifests, config.yaml and dict.txt; no number is in two of the sets.

    Raises:
        SweepError: the folder has something else in it.
        ValueError: there are fewer numbers than utterances.
    """
    partial = begin_data(folder)
    (partial / "audio").mkdir(parents=True)
    sizes = {
        "train": settings.train_utterances,
        "valid": settings.valid_utterances,
        "test": settings.test_utterances,
    }
    numbers = iter(random.Random(settings.seed).sample(range(NUMBERS), sum(sizes.values())))
    for part, size in sizes.items():
        rows = [
            _write_utterance(partial, f"{part}-{index}", next(numbers), settings.seed)
            for index in range(size)
        ]
        _write_lines(partial / f"{part}.tsv", ("\t".join(row) for row in [HEADER, *rows]))
    _write_lines(partial / "dict.txt", (f"{symbol} 1" for symbol in SYMBOLS))
    config = {
        "audio_root": "audio",
        "input_feat_per_channel": MEL_BINS,
        "sample_rate": RATE,
        "shuffle": True,
        "feature_transforms": {"*": ["utterance_norm"]},
    }
    (partial / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    finish_data(partial, folder, data_settings(settings), {})


def _write_utterance(folder: Path, name: str, number: int, seed: int) -> tuple[str, ...]:
    """Writes the audio and returns its row of the manifest."""
    text = english(number).replace("-", " ")
    samples = synthesize(text, np.random.default_rng((seed, number)))
    soundfile.write(folder / "audio" / f"{name}.flac", samples, RATE)
    return name, f"{name}.flac", str(frames_of(len(samples), RATE)), text, "synthetic"


def _write_lines(file: Path, lines: Iterable[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
