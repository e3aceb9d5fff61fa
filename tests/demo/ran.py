"""A demo that the tests of a module have run once, on a tiny scale."""

import io
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from sigma_fairseq.demo.run import Demo, run_demo


class Ran:
    """Runs a demo of one training.

    Attributes:
        out: what it was given for a folder.
        printed: what it returned.
    """

    def __init__(self, demo: Demo, out: Path) -> None:
        self.demo = demo
        self.out = out
        self.printed = self.again()

    def again(self) -> str:
        """Runs it in the same folder."""
        return run_demo(self.out, self.demo, 1, io.StringIO())

    def again_starting_nothing(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Runs it in the same folder where no process can be started."""

        def refuse(*args: object, **kwargs: object) -> NoReturn:
            raise AssertionError(f"started {args}")

        monkeypatch.setattr(subprocess, "Popen", refuse)
        return self.again()

    @property
    def data(self) -> Path:
        return self.out / self.demo.name / "data"

    @property
    def training(self) -> Path:
        """The folder of its training."""
        (folder,) = (
            path for path in (self.out / self.demo.name / "runs").iterdir() if path.is_dir()
        )
        return folder
