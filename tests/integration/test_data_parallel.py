"""Two workers: what one does with twice the accumulation, to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import run_fairseq
from tests.integration.training import (
    COMMON,
    FAMILIES,
    build_trainer,
    losses_of,
    train,
    write_data,
)
from tests.integration.worker import UPDATES

TORCHRUN = (*("-W", "ignore", "-m", "torch.distributed.run", "--standalone"), "--nproc-per-node=2")


def torchrun(*args: str) -> str:
    """The log of two processes that torchrun starts in the project."""
    result = subprocess.run(
        [sys.executable, *TORCHRUN, *args],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def folder(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data in a folder, and what both workers have left beside it."""
    folder = tmp_path_factory.mktemp("workers")
    write_data(folder / "data", data_bin)
    torchrun("--module", "tests.integration.worker", str(folder))
    return folder


@pytest.mark.parametrize("family", UPDATES)
def test_two_workers_on_the_cpu(family: str, folder: Path, tmp_path: Path) -> None:
    (losses, first, vectors), (others, second, copies) = (
        torch.load(folder / f"{family}-{rank}.pt") for rank in (0, 1)
    )
    assert first and second and not set(first) & set(second)  # each has a half of the data
    assert losses == others
    for pair, copy in zip(vectors, copies, strict=True):
        assert all(torch.equal(*vector) for vector in zip(pair, copy, strict=True))

    alone = build_trainer(family, folder / "data" / family, tmp_path)
    # A dozen updates: later, rounding has grown to something.
    assert losses[:12] == pytest.approx(train(alone, 12, micro_batches=2), rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
@pytest.mark.parametrize("family", UPDATES)
def test_two_gpus_by_torchrun(family: str, backend: str, folder: Path, tmp_path: Path) -> None:
    """The real command; fairseq sees by torchrun's environment that it is one of two."""
    options = [word for word in (*COMMON, *FAMILIES[family]) if word != "--cpu"]
    options += ["--ddp-backend", backend, "--max-update", "12", "--no-save"]
    options += ["--log-format", "json", "--log-interval", "1", "--disable-validation"]
    command = (str(folder / "data" / family), *options, "--save-dir")
    two = torchrun("--module", "fairseq_cli.train", *command, str(tmp_path / "two"))
    alone = ("--distributed-world-size", "1", "--update-freq", "2")
    one = run_fairseq("train", *command, str(tmp_path / "one"), *alone)
    assert len(losses_of(two)) == 12
    assert losses_of(two) == pytest.approx(losses_of(one.stdout + one.stderr), abs=2e-3)
