"""The monitors' file: one record a sampled update, in a normal .npy file that grows.

`np.load("monitor.npy", mmap_mode="r")["entropy"]` is an array (updates, attentions, heads): 100
layers, 8 heads and 100,000 updates are read without a parser, and only as far as they are looked
at. `monitor.json` beside it names attentions, matrices and embeddings, and has the run's options.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1


def record_dtype(attentions: int, heads: int, matrices: int, embeddings: int) -> np.dtype:
    """The fields of a record; what they hold is said in `Monitor`."""
    per_head, per_matrix = (attentions, heads), (matrices,)
    return np.dtype(
        [
            ("update", "<i8"),
            ("seconds", "<f8"),
            ("learning_rate", "<f4"),
            ("loss", "<f4"),
            ("entropy", "<f4", per_head),
            ("entropy_min", "<f4", per_head),
            ("entropy_bound", "<f4", per_head),
            ("entropy_max", "<f4", (attentions,)),
            ("key_query_norm", "<f4", per_head),
            ("spectral_norm", "<f4", per_matrix),
            ("gamma", "<f4", per_matrix),
            ("sigma_error", "<f4", per_matrix),
            ("gradient_norm", "<f4", per_matrix),
            ("update_ratio", "<f4", per_matrix),
            ("embedding_variability", "<f4", (embeddings,)),
        ]
    )


def finite_mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean of what is not NaN; NaN, without a warning, where all is (a layer that was dropped)."""
    count = np.isfinite(values).sum(axis)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.nansum(values, axis) / count
    return mean


class RecordWriter:
    """Appends records to `monitor.npy` in a folder; what is there already is kept.

    A record counts once the number in the file's header does, which is written after it, so a kill
    leaves a file that `np.load` reads.

    Args:
        folder: the run's save directory; made if missing.
        names: "attentions", "matrices" and "embeddings", for `monitor.json`.
        run: what else `monitor.json` says of the run.
        dtype: of `record_dtype`.

    Raises:
        ValueError: the folder's records are of another model, or damaged.
    """

    def __init__(
        self, folder: Path, names: dict[str, Any], run: dict[str, Any], dtype: np.dtype
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        header, file = folder / "monitor.json", folder / "monitor.npy"
        # Through JSON, as what is read back has been.
        names = json.loads(json.dumps(names))
        self._dtype = dtype
        if file.exists():
            self._count = _records_of(file, dtype)
            if self._count is None or _names_of(header, names) != names:
                raise ValueError(
                    f"{file} holds another model's records, or is damaged: remove it and "
                    f"{header.name}, or choose another --save-dir"
                )
        else:
            self._count = 0
        partial = header.with_suffix(".json.partial")
        partial.write_text(json.dumps({"format": FORMAT, **run, **names}, default=str) + "\n")
        partial.replace(header)
        self._file = file.open("r+b" if self._count else "w+b")
        self._write_header()
        self._start = self._file.tell()

    def append(self, record: np.ndarray) -> None:
        """Writes one record, a scalar array of the dtype, to the disk."""
        assert self._count is not None
        self._file.seek(self._start + self._count * self._dtype.itemsize)
        self._file.write(record.tobytes())
        self._file.flush()
        self._count += 1
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads the header so that the number of records can grow in place.
        description = np.lib.format.dtype_to_descr(self._dtype)
        fields = {"descr": description, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, fields)
        self._file.flush()


def _records_of(file: Path, dtype: np.dtype) -> int | None:
    """Number of records in a file of these fields; None if it is not one."""
    try:
        records = np.load(file, mmap_mode="r")
    except (ValueError, OSError, EOFError):
        return None
    return len(records) if records.dtype == dtype else None


def _names_of(header: Path, names: dict[str, Any]) -> dict[str, Any] | None:
    try:
        found = json.loads(header.read_text())
    except (OSError, ValueError):
        return None
    return {key: found.get(key) for key in names}
