"""A small data folder: noise in FLAC files, with transcripts that it has nothing to do with."""

from pathlib import Path

import numpy as np
import soundfile

from sigma_fairseq.speech.features import frames_of

CONFIG = """audio_root: audio
shuffle: true
feature_transforms: {"*": [utterance_norm], _train: [utterance_norm, specaugment]}
specaugment:
  {freq_mask_N: 2, freq_mask_F: 30, time_mask_N: 10, time_mask_T: 50, time_mask_p: 0.1,
   mask_value: 0.0}
"""
WORDS = ("one", "three", "it's", "a", "see")


def write_corpus(folder: Path, sizes: dict[str, int]) -> None:
    """Writes config.yaml, dict.txt and so many utterances a split, `SPLIT-0` the longest."""
    (folder / "audio").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    letters = "abcdefghijklmnopqrstuvwxyz'|"
    (folder / "dict.txt").write_text("".join(f"{letter} 1\n" for letter in letters))
    for seed, (split, size) in enumerate(sizes.items()):
        draw = np.random.default_rng(seed)
        rows = []
        for number in range(size):
            samples = int(draw.integers(15_500, 16_000)) - 500 * number
            audio = draw.normal(0, 0.05, samples)
            soundfile.write(folder / f"audio/{split}-{number}.flac", audio, 16_000)
            text = " ".join(draw.choice(WORDS, 3))
            name = f"{split}-{number}"
            rows.append((name, f"{name}.flac", frames_of(samples, 16_000), text, "nobody"))
        write_manifest(folder / f"{split}.tsv", rows)


def write_manifest(path: Path, rows: list[tuple[object, ...]]) -> None:
    """Writes rows of id, audio, frames, text and speaker."""
    header = ("id", "audio", "n_frames", "tgt_text", "speaker")
    lines = ("\t".join(map(str, row)) for row in (header, *rows))
    path.write_text("".join(f"{line}\n" for line in lines))


def read_manifest(path: Path) -> list[tuple[str, ...]]:
    """The rows of a manifest."""
    return [tuple(line.split("\t")) for line in path.read_text().splitlines()[1:]]


def damage(folder: Path, name: str) -> None:
    """Makes an utterance's audio unreadable."""
    (folder / f"audio/{name}.flac").write_bytes(b"fLaC" + bytes(100))
