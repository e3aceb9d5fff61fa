"""A demo's data in a folder that is either not there or complete, with the settings they are of."""

import json
import shutil
from pathlib import Path
from typing import Any

from sigma_fairseq.sweep.processes import SweepError

RECORD = "settings.json"


def load_record(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of the data in a folder, or None if there are none of these settings."""
    if not (folder / RECORD).is_file():
        return None
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record if record.pop("settings") == settings else None


def begin_data(folder: Path) -> Path:
    """Returns where to write the data of a folder until they are complete: not there yet.

    Raises:
        SweepError: the folder has something else in it.
    """
    if folder.exists() and not (folder / RECORD).is_file():
        raise SweepError(f"{folder} is there, but not of the demo's making: give another --out")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def finish_data(
    partial: Path, folder: Path, settings: dict[str, Any], record: dict[str, Any]
) -> None:
    """Moves complete data into place, with what `load_record` is to return."""
    text = json.dumps({"settings": settings, **record}, indent=1)
    (partial / RECORD).write_text(text, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
