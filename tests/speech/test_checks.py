"""Faults of manifests, and the frames CTC needs, against PyTorch's loss."""

import itertools
from pathlib import Path

import pytest
import torch

from sigma_fairseq.speech.checks import ctc_frames, describe, manifest_faults
from sigma_fairseq.speech.dictionary import LetterDictionary


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> LetterDictionary:
    path = tmp_path_factory.mktemp("dictionary") / "dict.txt"
    path.write_text("".join(f"{letter} 1\n" for letter in "abcdefghijklmnopqrstuvwxyz'|"))
    return LetterDictionary.read(path)


def test_ctc_frames_are_the_fewest_of_finite_loss() -> None:
    log_probs = torch.full((8, 1, 3), 1 / 3).log()
    for labels in itertools.product((1, 2), repeat=4):
        target, length = torch.tensor([labels]), torch.tensor([4])
        losses = [
            torch.nn.functional.ctc_loss(log_probs, target, torch.tensor([frames]), length)
            for frames in range(4, 9)
        ]
        fewest = 4 + [bool(loss.isfinite()) for loss in losses].index(True)
        assert ctc_frames(labels) == fewest


def test_each_fault_has_its_reason(tmp_path: Path, dictionary: LetterDictionary) -> None:
    audio = tmp_path / "audio.flac"
    audio.touch()
    (tmp_path / "all.zip").touch()
    cases = [
        ("100", "hello", audio, None),
        ("100", "it's", f"{tmp_path}/all.zip:100:200", None),
        ("101", "hello", audio, "too long"),
        # Five letters, of which two are equal neighbours, need six frames of 30 ms.
        ("16", "hello", audio, None),
        ("15", "hello", audio, "too short for its transcript"),
        ("0", "hello", audio, "n_frames below 1"),
        ("", "hello", audio, "n_frames not a number"),
        (None, None, audio, "n_frames not a number"),
        ("1e2", "hello", audio, "n_frames not a number"),
        ("100", "Hello", audio, "mislabelled"),
        ("100", " ", audio, "mislabelled"),
        ("100", None, audio, "mislabelled"),
        ("100", "hello", tmp_path / "none.flac", "missing"),
        ("100", "hello", tmp_path, "missing"),
        ("100", "hello", f"{tmp_path}/none.zip:100:200", "missing"),
    ]
    rows = [{"n_frames": frames, "tgt_text": text} for frames, text, _, _ in cases]
    found = manifest_faults(rows, [str(path) for _, _, path, _ in cases], dictionary, 100)  # type: ignore[arg-type]
    expected = {number: case[3] for number, case in enumerate(cases) if case[3] is not None}
    assert found == expected


def test_description_counts_and_names() -> None:
    faults = [(f"u{number}", "missing") for number in range(12)] + [("long", "too long")]
    names = ", ".join(f"u{number}" for number in range(10))
    assert describe(faults) == f"missing 12 ({names} and 2 more), too long 1 (long)"
    assert describe(faults, None).startswith(f"missing 12 ({names}, u10, u11), ")
