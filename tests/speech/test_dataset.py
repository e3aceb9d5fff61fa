"""Batches against what they are made of, draws of SpecAugment, and utterances that are left out."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fairseq.data import ConcatDataset
from fairseq.data.audio.data_cfg import S2TDataConfig
from torch.utils.data import DataLoader

from sigma_fairseq.speech.dataset import SpeechDataset, audio_faults, load_split
from sigma_fairseq.speech.dictionary import LetterDictionary
from sigma_fairseq.speech.features import log_mel
from tests.speech.corpus import damage, read_manifest, write_corpus, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "data", {"train-a": 6, "train-b": 4, "dev": 5})
    return tmp_path / "data"


def load(folder: Path, split: str, seed: int = 1) -> SpeechDataset:
    return load_all(folder, split, seed)[0]


def load_all(folder: Path, split: str, seed: int = 1) -> tuple[SpeechDataset, Any]:
    cfg = S2TDataConfig(folder / "config.yaml")
    return load_split(
        folder, split, cfg, LetterDictionary.read(folder / "dict.txt"), max_frames=3000, seed=seed
    )


def batches(dataset: Any, workers: int, epochs: int) -> list[list[dict[str, Any]]]:
    """As fairseq's iterator reads, which keeps its workers from one epoch to the next."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=[[0, 1, 2], [3, 4], [5]],
        collate_fn=dataset.collater,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    found = []
    for epoch in range(1, epochs + 1):
        dataset.set_epoch(epoch)
        found.append(list(loader))
    return found


def normalized(path: Path) -> np.ndarray:
    features = log_mel(path).astype(np.float64)
    return (features - features.mean()) / features.std()


def test_batch(folder: Path) -> None:
    dataset = load(folder, "dev")
    batch = dataset.collater([dataset[index] for index in (3, 0, 4)])
    rows = read_manifest(folder / "dev.tsv")
    assert batch["id"].tolist() == [3, 0, 4] and batch["nsentences"] == 3
    source, padding = batch["net_input"].values()
    assert list(batch["net_input"]) == ["source", "padding_mask"]
    for place, row in enumerate((3, 0, 4)):
        features = normalized(folder / "audio" / rows[row][1])
        frames = int(rows[row][2])
        assert padding[place].tolist() == [False] * frames + [True] * (source.size(1) - frames)
        np.testing.assert_allclose(source[place, :frames].numpy(), features, atol=1e-4)
        assert not source[place, frames:].any()
        letters = rows[row][3].replace(" ", "|")
        length = batch["target_lengths"][place]
        labels = batch["target"][place]
        assert [dataset.tgt_dict[label] for label in labels[:length]] == list(letters)
        assert (labels[length:] == dataset.tgt_dict.pad()).all()
    assert batch["ntokens"] == batch["target_lengths"].sum()
    assert dataset.size(0) == (int(rows[0][2]), len(rows[0][3]))


def test_ids_are_rows_of_the_manifest(folder: Path) -> None:
    rows = read_manifest(folder / "dev.tsv")
    rows[1] = (*rows[1][:3], "Mislabelled", "")
    write_manifest(folder / "dev.tsv", rows)
    dataset, faults = load_all(folder, "dev")
    assert faults == [("dev-1", "mislabelled")]
    assert dataset.collater([dataset[0], dataset[1]])["id"].tolist() == [0, 2]


def test_masks_depend_on_seed_epoch_and_row_alone(folder: Path) -> None:
    def sources(workers: int, seed: int = 1) -> list[list[torch.Tensor]]:
        both = ConcatDataset([load(folder, split, seed) for split in ("train-a", "train-b")])
        found = batches(both, workers, epochs=2)
        return [[batch["net_input"]["source"] for batch in epoch] for epoch in found]

    here = sources(0)
    np.random.seed(5)
    state = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    for mine, theirs in zip(here, sources(2), strict=True):
        assert all(map(torch.equal, mine, theirs))
    sources(0)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[union-attr]
    assert not any(map(torch.equal, here[0], here[1]))
    assert not any(map(torch.equal, here[0], sources(0, seed=2)[0]))


def test_masks_are_fairseqs_of_the_normalized_features(folder: Path) -> None:
    dataset = load(folder, "train-a")
    draws = []
    for epoch in range(1, 30):
        dataset.set_epoch(epoch)
        masked = dataset[0].source.numpy()
        whole = normalized(folder / "audio/train-a-0.flac")
        np.testing.assert_allclose(masked[masked != 0], whole[masked != 0], atol=1e-4)
        zero = masked == 0
        frames, bins = zero.all(axis=1), zero.all(axis=0)
        assert (zero == frames[:, None] | bins).all()
        assert bins.sum() <= 2 * 29 and frames.sum() <= 10 * (len(masked) // 10 - 1)
        draws.append((frames.sum(), bins.sum()))
    assert min(np.mean(draws, axis=0)) > 10
    assert (load(folder, "dev")[0].source != 0).all()


def test_unusable_audio_is_left_out_named_and_counted_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = load(folder, "train-a")
    damage(folder, "train-a-0")
    soundfile.write(folder / "audio/train-a-1.flac", np.zeros(15_000), 16_000)
    (folder / "audio/train-a-2.flac").unlink()
    soundfile.write(folder / "audio/train-a-3.flac", np.random.default_rng(0).random(9000), 16_000)
    frames = {row[0]: int(row[2]) for row in read_manifest(folder / "train-a.tsv")}
    silent = 1 + (15_000 - 400) // 160
    dataset.n_frames[1] = silent
    with caplog.at_level(logging.WARNING):
        first = [
            dataset.collater([dataset[index] for index in part]) for part in ((0, 4, 1), (2, 3))
        ]
        again = batches(dataset, workers=2, epochs=1)[0]
    assert [batch["id"].tolist() for batch in first] == [[4], []]
    assert [batch["id"].tolist() for batch in again] == [[], [4], [5]]
    assert [batch["nsentences"] for batch in again] == [0, 1, 1]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 4
    assert lines[0].startswith("train-a: cannot use train-a-0: corrupt (")
    audio = folder / "audio"
    assert lines[1] == f"train-a: cannot use train-a-1: silent ({audio}/train-a-1.flac), 2 so far"
    assert lines[2] == f"train-a: cannot use train-a-2: missing ({audio}/train-a-2.flac), 3 so far"
    assert lines[3] == (
        f"train-a: cannot use train-a-3: of another length ({audio}/train-a-3.flac: 54 frames, "
        f"{frames['train-a-3']} in the manifest), 4 so far"
    )
    assert dataset.collater([]) == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_everything_finds_what_is_damaged(folder: Path, workers: int) -> None:
    damage(folder, "train-b-1")
    dataset = load(folder, "train-b")
    (folder / "audio/train-b-3.flac").unlink()
    found = audio_faults(dataset, workers)
    assert found == [("train-b-1", "corrupt"), ("train-b-3", "missing")]


def test_errors_of_a_split_are_one_line(folder: Path) -> None:
    def message() -> str:
        with pytest.raises(ValueError) as raised:
            load(folder, "dev")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    rows = read_manifest(folder / "dev.tsv")
    write_manifest(folder / "dev.tsv", [(*row[:2], "many", *row[3:]) for row in rows[:2]])
    assert message().endswith("has no utterance to use: n_frames not a number 2 (dev-0, dev-1)")
    (folder / "dev.tsv").write_text("id\taudio\nx\ty\n")
    assert message().endswith("dev.tsv has no column n_frames, tgt_text")
    (folder / "dev.tsv").write_text("id\taudio\n")
    assert "Empty manifest" in message()
    (folder / "dev.tsv").unlink()
    assert str(folder / "dev.tsv") in message()
    write_manifest(folder / "dev.tsv", list(rows))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("[utterance_norm]", "[norm]"))
    assert message() == "no feature transform is called 'norm'"
