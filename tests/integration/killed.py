"""Starts a training again and again and kills it, until it has ended: run by test_killed.py.

    killed.py KILLS WORD...

runs `fairseq-train WORD...` in children of this process, which spares each of them the imports.
Every other child is killed at a random moment after it has started, and the rest while it copies a
checkpoint to another name, in which fairseq can be half way. The last is left alone. Prints what
was left behind by each.
"""

import os
import random
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from fairseq_cli import train

import sigma_fairseq  # noqa: F401 (so that no child has to)

copyfile = shutil.copyfile


def die_in_copy(number: int) -> None:
    """This process kills itself half way through its so-manieth copy."""
    left = iter(range(number, -1, -1))

    def copy(source: Any, target: Any, **kwargs: Any) -> Any:
        if next(left):
            return copyfile(source, target, **kwargs)
        data = Path(source).read_bytes()
        with open(target, "wb") as stream:
            stream.write(data[: len(data) // 2])
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    shutil.copyfile = copy


def run(words: list[str], *, delay: float | None = None, copies: int | None = None) -> int:
    """Trains in a child, and kills it after `delay` seconds or in copy number `copies`.

    Returns:
        Its status, as `os.waitpid` gives it.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            sys.argv = ["fairseq-train", *words]
            if copies is not None:
                die_in_copy(copies)
            train.cli_main()
            status = 0
        finally:
            os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main() -> None:
    kills, words = int(sys.argv[1]), sys.argv[2:]
    folder = Path(words[words.index("--save-dir") + 1])
    draw = random.Random(0)
    for number in range(kills):
        if number % 2:
            status = run(words, copies=draw.randrange(4))
        else:
            status = run(words, delay=draw.uniform(0.3, 1.2))
        files = {path.name: zipfile.is_zipfile(path) for path in folder.glob("*.pt")}
        broken = sorted(name for name, whole in files.items() if not whole)
        print(f"status {status}: {len(files)} files, broken: {' '.join(broken) or 'none'}")
    sys.exit(run(words))


if __name__ == "__main__":
    main()
