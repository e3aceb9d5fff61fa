"""Archives from elsewhere write nothing outside of the folder that they are unpacked in."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipes.scripts import ROOT

Add = Callable[[tarfile.TarFile, Path], None]


def member(
    archive: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, to: str = ""
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, to
    content = b"" if to else b"text"
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def above(archive: tarfile.TarFile, outside: Path) -> None:
    member(archive, "set/../../../outside/file")


def by_link(archive: tarfile.TarFile, outside: Path) -> None:
    member(archive, "link", tarfile.SYMTYPE, str(outside))
    member(archive, "link/file")


def by_relative_link(archive: tarfile.TarFile, outside: Path) -> None:
    member(archive, "set/link", tarfile.SYMTYPE, "../../../outside")
    member(archive, "set/link/file")


def by_hard_link(archive: tarfile.TarFile, outside: Path) -> None:
    member(archive, "link", tarfile.LNKTYPE, "../../outside/kept")
    member(archive, "link")


def absolute(archive: tarfile.TarFile, outside: Path) -> None:
    member(archive, f"{outside}/file")


def extract(archive: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = f'. "{ROOT}/scripts/recipe.sh"; extract "{archive}"'
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("add", [above, by_link, by_relative_link, by_hard_link, absolute])
def test_nothing_gets_out(add: Add, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "raw"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    folder.mkdir()
    with tarfile.open(folder / "data.tgz", "w:gz") as archive:
        add(archive, outside)
    result = extract(folder / "data.tgz")
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_text() == "mine"
    # An absolute name is one below the folder; the others are refused in one line.
    if add is not absolute:
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert "error: data.tgz: " in result.stderr


def test_the_rest_is_there(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tgz", "w:gz") as archive:
        member(archive, "set/file")
        member(archive, "set/link", tarfile.SYMTYPE, "file")
    result = extract(tmp_path / "data.tgz")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data.tgz.part" / "set" / "link").read_text() == "text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.tgz", "data.tgz.part"]
