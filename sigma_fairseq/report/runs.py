"""Reads what a training has left in its folder."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

FORMAT = 1
ATTENTION_KINDS = ("encoder self", "decoder self", "encoder-decoder")
MATRIX_KINDS = ("query", "key", "value", "output", "fc1", "fc2", "other")

_LOGGED = re.compile(r"\| train_inner \| (\{.*\})")
_ARCHITECTURE = re.compile(r"'model': \{'_name': '([^']*)'")
_SCALARS = ("update", "seconds", "learning_rate", "loss")
# Fields with one entry, or one a head, for each of a list in monitor.json.
_LISTED = {
    "attentions": ("entropy", "entropy_min", "entropy_bound", "entropy_max", "key_query_norm"),
    "matrices": ("spectral_norm", "gamma", "sigma_error", "gradient_norm", "update_ratio"),
    "embeddings": ("embedding_variability",),
}


class RunError(Exception):
    """A folder that cannot be read as a run: its text names the folder and the reason."""


@dataclasses.dataclass(frozen=True)
class Attention:
    """One attention of the model.

    Attributes:
        name: of the module.
        kind: one of `ATTENTION_KINDS`.
        layer: counted from 0, at the input.
        heads: how many.
    """

    name: str
    kind: str
    layer: int
    heads: int


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One weight matrix of the model.

    Attributes:
        name: of the module.
        kind: one of `MATRIX_KINDS`.
        stack: "encoder", "decoder" or "".
        layer: counted from 0, at the input; None outside of layers.
    """

    name: str
    kind: str
    stack: str
    layer: int | None


_Entry = TypeVar("_Entry", Attention, Matrix)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training that was recorded, or is being recorded.

    Attributes:
        folder: where it was read from.
        name: the folder's last part.
        architecture: as fairseq names it; "" if unknown.
        options: "section.key" → value of fairseq's resolved configuration.
        attentions: A of them, in the order of the records' entries; H is the most heads of any.
        matrices: M of them.
        embeddings: names of E token embeddings.
        file: all records ever written, mapped and not read: there can be gigabytes of them.
        rows: ascending indices of the records in `file` that count. Those that a run wrote before
            it went back to an older checkpoint, and then made anew, do not.
    """

    folder: Path
    name: str
    architecture: str
    options: dict[str, Any]
    attentions: list[Attention]
    matrices: list[Matrix]
    embeddings: list[str]
    file: np.ndarray
    rows: np.ndarray

    @property
    def records(self) -> np.ndarray:
        """All records that count, (N,), in memory, updates strictly increasing."""
        return self.file[self.rows]

    @cached_property
    def updates(self) -> np.ndarray:
        """Number of each recorded update, (N,)."""
        return self.file["update"][self.rows]

    @cached_property
    def losses(self) -> np.ndarray:
        """Mean training loss since the record before, in bits a target token, (N,)."""
        return self.file["loss"][self.rows]

    def sample(self, most: int) -> np.ndarray:
        """Records at equal distances, the first and the last among them, (min(N, most),)."""
        places = np.linspace(0, len(self.rows) - 1, min(len(self.rows), most)).round()
        return self.file[self.rows[places.astype(int)]]


def load_run(folder: Path) -> Run:
    """Opens a run with monitors, or one without of which there is fairseq's JSON log, train.log.

    Args:
        folder: the run's save directory.

    Raises:
        RunError: the folder is no run, is damaged, or holds no recorded update yet.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder")
    if (folder / "monitor.json").is_file():
        run = _monitored(folder)
    elif (folder / "train.log").is_file():
        run = _logged(folder)
    else:
        raise RunError(f"{folder} is not a run: it has neither a monitor.json nor a train.log")
    if not len(run.rows):
        raise RunError(f"{folder} holds no recorded update yet")
    return run


def _monitored(folder: Path) -> Run:
    try:
        header = json.loads((folder / "monitor.json").read_text(encoding="utf-8"))
        if header["format"] != FORMAT:
            raise RunError(
                f"{folder}/monitor.json is of format {header['format']}, not of format {FORMAT}"
            )
        attentions = _entries(Attention, header["attentions"], ATTENTION_KINDS)
        matrices = _entries(Matrix, header["matrices"], MATRIX_KINDS)
        embeddings = list(map(str, header["embeddings"]))
        architecture, options = str(header["architecture"]), _flat(header["options"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder}/monitor.json is damaged: it is no JSON, or lacks what a run's has"
        ) from error
    file = _mapped(folder / "monitor.npy")
    _check_fields(file, folder, attentions, matrices, embeddings)
    rows = _rows_that_count(file["update"])
    return Run(
        folder,
        folder.resolve().name,
        architecture,
        options,
        attentions,
        matrices,
        embeddings,
        file,
        rows,
    )


def _entries(kind: type[_Entry], listed: Any, kinds: Sequence[str]) -> list[_Entry]:
    """Attentions or matrices of a monitor.json, which anyone can have written.

    Raises:
        TypeError, ValueError: they are not as the monitors write them.
    """
    entries = [kind(**entry) for entry in listed]
    for entry in entries:
        for field in dataclasses.fields(entry):
            if not isinstance(getattr(entry, field.name), field.type):  # type: ignore[arg-type]
                raise TypeError(field.name)
        if entry.kind not in kinds or (entry.layer or 0) not in range(len(entries)):
            raise ValueError(entry.name)
    return entries


def _mapped(file: Path) -> np.ndarray:
    try:
        # Unlike np.load it takes nothing but an .npy file, and none that holds pickled objects.
        return np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError:
        raise RunError(f"{file.parent} holds no recorded update yet") from None
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{file} is damaged: it ends too early or is no .npy file") from error


def _check_fields(
    file: np.ndarray,
    folder: Path,
    attentions: list[Attention],
    matrices: list[Matrix],
    embeddings: list[str],
) -> None:
    """Whether the records are those that monitor.json speaks of."""
    lengths = {
        "attentions": len(attentions),
        "matrices": len(matrices),
        "embeddings": len(embeddings),
    }
    fields: Mapping[str, Any] = file.dtype.fields or {}
    for field in (*_SCALARS, *(field for group in _LISTED.values() for field in group)):
        if field not in fields:
            raise RunError(f"{folder}/monitor.npy is damaged: its records have no {field}")
    for group, names in _LISTED.items():
        for field in names:
            shape = fields[field][0].shape
            if shape[:1] != (lengths[group],):
                raise RunError(
                    f"{folder}/monitor.npy does not belong to the monitor.json beside it: "
                    f"{field} has the shape {shape}, for {lengths[group]} {group}"
                )


def _logged(folder: Path) -> Run:
    """What fairseq's own log tells: the loss and the learning rate."""
    text = (folder / "train.log").read_text(encoding="utf-8", errors="replace")
    points = []
    for line in _LOGGED.findall(text):
        try:
            point = json.loads(line)
            points.append((int(point["num_updates"]), float(point["lr"]), float(point["loss"])))
        except (ValueError, KeyError):
            continue  # a line that two processes wrote at the same time, or that a kill cut off
    listed = [(field, "<f4", (0, 0)) for group in _LISTED.values() for field in group]
    kinds = zip(_SCALARS, ("<i8", "<f8", "<f4", "<f4"), strict=True)
    file = np.zeros(len(points), dtype=[*kinds, *listed])
    file["seconds"] = np.nan
    for number, field in enumerate(("update", "learning_rate", "loss")):
        file[field] = [point[number] for point in points]
    architecture = _ARCHITECTURE.search(text)
    return Run(
        folder,
        folder.resolve().name,
        architecture.group(1) if architecture else "",
        {},
        [],
        [],
        [],
        file,
        _rows_that_count(file["update"]),
    )


def _rows_that_count(updates: np.ndarray) -> np.ndarray:
    """Indices of the updates that are below all that come after them in the file."""
    updates = np.array(updates)
    least_after = np.minimum.accumulate(updates[::-1])[::-1]
    return np.flatnonzero(np.append(updates[:-1] < least_after[1:], True)[: len(updates)])


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for section, group in options.items():
        if isinstance(group, dict):
            flat.update({f"{section}.{key}": value for key, value in group.items()})
        else:
            flat[section] = group
    return flat
