"""A last checkpoint that was cut off in the writing, and is whole beside it."""

import logging
import os
import re
import shutil
import zipfile
from pathlib import Path

logger = logging.getLogger(__name__)

LAST = "checkpoint_last.pt"
#: What fairseq calls the others: of an epoch, of an update, the best one, and the best ones kept.
_OTHERS = re.compile(r"checkpoint(\d+|_\d+_\d+|_best|\.best_.*)\.pt")


def mend_last_checkpoint(folder: Path) -> None:
    """Puts a whole checkpoint in the place of a last one that is not.

    fairseq writes the first file of a checkpoint beside its place and moves it there, but copies it
    to its other names; killed meanwhile, it leaves half a `checkpoint_last.pt`, from which the next
    start would not resume, and the same checkpoint whole under the first name.

    Args:
        folder: the `--save-dir` of a training.

    Raises:
        ValueError: there is half a last checkpoint and no whole one.
    """
    last = folder / LAST
    if not last.exists() or zipfile.is_zipfile(last):
        return
    whole = [
        path
        for path in folder.glob("checkpoint*.pt")
        if _OTHERS.fullmatch(path.name) and zipfile.is_zipfile(path)
    ]
    if not whole:
        raise ValueError(
            f"{last} is not a whole checkpoint, and there is no other in its folder: move it away "
            "to start anew"
        )
    newest = max(whole, key=lambda path: path.stat().st_mtime_ns)
    logger.warning("%s was cut off in the writing: going on from %s", last, newest.name)
    part = last.with_name(LAST + ".part")
    shutil.copyfile(newest, part)
    os.replace(part, last)
