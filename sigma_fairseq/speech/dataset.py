"""Utterances of a manifest as batches for CTC."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils
from fairseq.data.audio.data_cfg import S2TDataConfig
from fairseq.data.audio.speech_to_text_dataset import (
    SpeechToTextDataset,
    SpeechToTextDatasetCreator,
)
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm import tqdm

from sigma_fairseq.speech.checks import Faults, describe, manifest_faults
from sigma_fairseq.speech.dictionary import LetterDictionary
from sigma_fairseq.speech.features import MEL_BINS, AudioError, read_features

logger = logging.getLogger(__name__)

COLUMNS = ("id", "audio", "n_frames", "tgt_text")


@dataclass
class Utterance:
    """Features (frames, 80) fp32, labels (letters,), and the number of the manifest's row."""

    row: int
    source: Tensor
    target: Tensor


@dataclass
class Unusable:
    """Stands for an utterance whose audio cannot be used: why not, briefly and in full."""

    reason: str
    detail: str


#: Makes a batch of which nothing else is left.
_SILENCE = Utterance(row=-1, source=torch.zeros(3, MEL_BINS), target=torch.ones(1).long())


class SpeechDataset(SpeechToTextDataset):
    """fairseq's dataset of a manifest, with batches for CTC.

    An utterance whose audio is missing, corrupt, silent or not as long as the manifest has it is
    left out of its batch, with one log line. SpecAugment draws from the seed, the epoch and the row
    alone: its masks are the same whichever worker reads the utterance, and after whatever.

    Args:
        split: its name; those of training begin with `train`.
        rows: of the manifest, all of them.
        used: numbers of those that the dataset has.
        paths: audio of the rows, as `read_features` takes it.
        cfg: the data folder's `config.yaml`.
        dictionary: of the transcripts.
        seed: of SpecAugment.
    """

    def __init__(
        self,
        split: str,
        rows: Sequence[dict[str, str]],
        used: Sequence[int],
        paths: Sequence[str],
        cfg: S2TDataConfig,
        dictionary: LetterDictionary,
        seed: int,
    ) -> None:
        self._rows = np.array(used)
        self._seed = seed
        # Workers of a data loader stay from one epoch to the next: they see these change.
        self._epoch = torch.ones((), dtype=torch.long).share_memory_()
        self._reported = torch.zeros(len(used), dtype=torch.bool).share_memory_()
        super().__init__(
            split,
            split.startswith("train"),
            cfg,
            audio_paths=[paths[number] for number in used],
            n_frames=[int(rows[number]["n_frames"]) for number in used],
            tgt_texts=[rows[number]["tgt_text"] for number in used],
            ids=[rows[number]["id"] for number in used],
            tgt_dict=dictionary,
        )

    def get_tgt_lens_and_check_oov(self) -> list[int]:
        """Labels of each transcript; none has letters outside the dictionary any more."""
        return [len(" ".join(text.split())) for text in self.tgt_texts]

    def set_epoch(self, epoch: int) -> None:
        """fairseq calls it before it reads the first batch of an epoch."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Utterance | Unusable:
        item = self._read(index)
        if isinstance(item, Unusable) and not self._reported[index]:
            self._reported[index] = True
            logger.warning(
                "%s: cannot use %s: %s (%s), %d so far",
                *(self.split, self.ids[index], item.reason, item.detail),
                int(self._reported.sum()),
            )
        return item

    def _read(self, index: int) -> Utterance | Unusable:
        path, frames = self.audio_paths[index], self.n_frames[index]
        try:
            features = read_features(path)
        except FileNotFoundError:
            return Unusable("missing", path)
        except AudioError as error:
            return Unusable("corrupt", str(error))
        if len(features) != frames:
            detail = f"{path}: {len(features)} frames, {frames} in the manifest"
            return Unusable("of another length", detail)
        if np.ptp(features) == 0:
            return Unusable("silent", path)
        row = int(self._rows[index])
        if self.feature_transforms is not None:
            with data_utils.numpy_seed(self._seed, int(self._epoch), row):
                features = self.feature_transforms(features)
        labels = self.tgt_dict.labels(self.tgt_texts[index])
        return Utterance(row, torch.from_numpy(features), torch.tensor(labels))

    def collater(self, samples: Sequence[Utterance | Unusable]) -> dict[str, Any]:
        """Makes a batch of the utterances.

        Returns:
            `id` (B,), numbers of rows of the manifest; `net_input` with `source` (B, T, 80), 0 at
            padding, and `padding_mask` (B, T), True there; `target` (B, L), blank at padding;
            `target_lengths` (B,); `ntokens`, labels, and `nsentences`. If all are unusable, a
            batch of silence with `nsentences` 0, since fairseq's trainer would do again its first
            batch instead, and count it; the task gives it no weight. {} if there are no samples.
        """
        if not samples:
            return {}
        usable = [item for item in samples if isinstance(item, Utterance)]
        batch = usable or [_SILENCE]
        source = pad_sequence([item.source for item in batch], batch_first=True)
        frames = torch.tensor([len(item.source) for item in batch])
        target_lengths = torch.tensor([len(item.target) for item in batch])
        blank = self.tgt_dict.pad()
        return {
            "id": torch.tensor([item.row for item in usable], dtype=torch.long),
            "net_input": {
                "source": source,
                "padding_mask": torch.arange(source.size(1)) >= frames[:, None],
            },
            "target": pad_sequence([item.target for item in batch], True, blank),
            "target_lengths": target_lengths,
            "ntokens": sum(len(item.target) for item in usable),
            "nsentences": len(usable),
        }


def load_split(
    folder: Path,
    split: str,
    cfg: S2TDataConfig,
    dictionary: LetterDictionary,
    max_frames: int,
    seed: int,
) -> tuple[SpeechDataset, Faults]:
    """Reads `SPLIT.tsv` and leaves out what cannot be used, as far as one can tell without reading.

    Args:
        folder: the data folder; `audio_root` is relative to it.
        split: name of the manifest.
        cfg: `config.yaml` of the folder.
        dictionary: of the transcripts.
        max_frames: of an utterance.
        seed: see `SpeechDataset`.

    Returns:
        The dataset and what it lacks.

    Raises:
        ValueError: there is no manifest, it lacks a column, or no utterance can be used.
    """
    try:
        rows = SpeechToTextDatasetCreator._load_samples_from_tsv(str(folder), split)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    lacking = [column for column in COLUMNS if column not in rows[0]]
    if lacking:
        raise ValueError(f"{folder / split}.tsv has no column {', '.join(lacking)}")
    root = folder / cfg.audio_root
    # Python's reader of tables has None for what a line lacks.
    paths = [str(root / (row["audio"] or "")) for row in rows]
    faulty = manifest_faults(rows, paths, dictionary, max_frames)
    faults = [(rows[number]["id"], reason) for number, reason in faulty.items()]
    used = [number for number in range(len(rows)) if number not in faulty]
    if not used:
        raise ValueError(f"{folder / split}.tsv has no utterance to use: {describe(faults)}")
    try:
        dataset = SpeechDataset(split, rows, used, paths, cfg, dictionary, seed)
    except KeyError as error:
        raise ValueError(f"no feature transform is called {error}") from error
    return dataset, faults


def audio_faults(dataset: SpeechDataset, num_workers: int) -> Faults:
    """Reads every utterance once, with a progress bar.

    Args:
        dataset: its utterances.
        num_workers: processes that read; with 0 it is this one.
    """
    reasons: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=lambda item: getattr(item, "reason", None),
    )
    progress = tqdm(reasons, desc=f"reading {dataset.split}", unit="utterance")
    return [(name, reason) for name, reason in zip(dataset.ids, progress, strict=True) if reason]
