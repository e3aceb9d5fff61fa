"""The records' file: what NumPy reads back, after going on and after a kill."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sigma_fairseq.monitor.records import RecordWriter, record_dtype

DTYPE = record_dtype(3, 2, 4, 1)
NAMES = {"attentions": [{"name": "a", "layer": 0}], "matrices": [{"layer": None}], "embeddings": []}


def write(folder: Path, updates: range) -> None:
    writer = RecordWriter(folder, NAMES, {"architecture": "tiny", "options": {}}, DTYPE)
    for update in updates:
        record = np.zeros((), DTYPE)
        record["update"], record["entropy"], record["gamma"] = update, update / 8, np.nan
        writer.append(record)


def test_numpy_reads_what_was_written_in_several_goes(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write(folder, range(7))
    write(folder, range(7, 150))  # the number of records gets more digits
    records = np.load(folder / "monitor.npy", mmap_mode="r")
    assert records.dtype == DTYPE
    assert records["update"].tolist() == list(range(150))
    assert records["entropy"].shape == (150, 3, 2)
    assert records["entropy"][8].tolist() == [[1.0, 1.0]] * 3
    assert np.isnan(records["gamma"]).all()
    header = json.loads((folder / "monitor.json").read_text())
    assert header == {"format": 1, "architecture": "tiny", "options": {}, **NAMES}


def test_a_kill_in_the_middle_of_a_record_loses_that_record_only(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    with (tmp_path / "monitor.npy").open("ab") as file:
        file.write(os.urandom(DTYPE.itemsize // 2))
    assert np.load(tmp_path / "monitor.npy", mmap_mode="r")["update"].tolist() == [0, 1, 2]
    write(tmp_path, range(3, 5))
    assert np.load(tmp_path / "monitor.npy", mmap_mode="r")["update"].tolist() == list(range(5))


def test_a_run_that_has_just_begun_is_an_empty_array(tmp_path: Path) -> None:
    write(tmp_path, range(0))
    assert len(np.load(tmp_path / "monitor.npy")) == 0
    write(tmp_path, range(2))
    assert len(np.load(tmp_path / "monitor.npy")) == 2


@pytest.mark.parametrize("damage", ["other model", "no header", "broken header", "no array"])
def test_another_models_records_are_not_touched(tmp_path: Path, damage: str) -> None:
    write(tmp_path, range(2))
    dtype, header, array = DTYPE, tmp_path / "monitor.json", tmp_path / "monitor.npy"
    if damage == "other model":
        dtype = record_dtype(3, 2, 5, 1)
    elif damage == "no header":
        header.unlink()
    elif damage == "broken header":
        header.write_text("{")
    else:
        array.write_bytes(b"nothing")
    before = array.read_bytes()
    with pytest.raises(ValueError, match=r"remove it .* or choose another --save-dir"):
        RecordWriter(tmp_path, NAMES, {}, dtype)
    assert array.read_bytes() == before
