"""A last checkpoint that was cut off in the writing is mended before fairseq reads it."""

import os
from pathlib import Path

import pytest
import torch

from sigma_fairseq.models.last_checkpoint import LAST, mend_last_checkpoint


def write(path: Path, update: int, *, cut: float = 1.0) -> None:
    """A checkpoint of which a share has been written, `update` seconds after the epoch."""
    torch.save({"update": update, "model": torch.arange(1000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    os.utime(path, (update, update))


def update_of(path: Path) -> int:
    found: int = torch.load(path)["update"]
    return found


@pytest.mark.parametrize("cut", [0.0, 0.2, 0.99])
@pytest.mark.parametrize(
    "name",
    ["checkpoint_best.pt", "checkpoint7.pt", "checkpoint_1_20.pt", "checkpoint.best_ppl_4.2.pt"],
)
def test_the_newest_whole_one_takes_its_place(tmp_path: Path, name: str, cut: float) -> None:
    write(tmp_path / "checkpoint3.pt", 10)
    write(tmp_path / name, 20)
    write(tmp_path / "checkpoint_1_30.pt", 30, cut=0.5)
    write(tmp_path / "checkpoint_average.pt", 40)  # not of the training
    write(tmp_path / LAST, 50, cut=cut)
    mend_last_checkpoint(tmp_path)
    assert update_of(tmp_path / LAST) == update_of(tmp_path / name) == 20
    assert not (tmp_path / (LAST + ".part")).exists()


def test_a_whole_one_stays(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint_best.pt", 20)
    write(tmp_path / LAST, 10)
    mend_last_checkpoint(tmp_path)
    assert update_of(tmp_path / LAST) == 10


def test_none_is_left_none(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint_best.pt", 20)
    mend_last_checkpoint(tmp_path)
    assert not (tmp_path / LAST).exists()


def test_without_a_whole_one_it_says_so(tmp_path: Path) -> None:
    write(tmp_path / LAST, 10, cut=0.5)
    with pytest.raises(
        ValueError, match=r"checkpoint_last\.pt is not a whole checkpoint, and there"
    ):
        mend_last_checkpoint(tmp_path)
