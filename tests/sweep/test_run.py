"""A sweep end to end on a tiny scale, through fairseq's real commands."""

import dataclasses
import fcntl
import io
import json
import math
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
from fairseq.checkpoint_utils import load_checkpoint_to_cpu

from sigma_fairseq.sweep import training
from sigma_fairseq.sweep.processes import SweepError
from sigma_fairseq.sweep.run import Finished, places, run_sweep
from sigma_fairseq.sweep.settings import Evaluation, Sweep, make_sweep
from sigma_fairseq.sweep.training import Training

CONTENT: dict[str, Any] = {
    "data": "bin",
    "out": "out",
    "options": {
        "encoder-embed-dim": 16,
        "encoder-ffn-embed-dim": 16,
        "encoder-attention-heads": 2,
        "decoder-attention-heads": 2,
        "optimizer": "adam",
        "batch-size": 16,
        "max-update": 8,
        "no-epoch-checkpoints": True,
        "disable-validation": True,
        "cpu": True,
    },
    "methods": {
        "post-LN": {"arch": "transformer_postln_6l"},
        "no model": {"arch": "transformer_postln_6l", "encoder-attention-heads": 3, "lr": 1e-3},
    },
    "grid": {"lr": [1e-3, 1e30]},
    "evaluate": {"score": "perplexity"},
    "jobs": 2,
}


class Ran(NamedTuple):
    sweep: Sweep
    finished: Finished
    progress: str

    @property
    def training(self) -> Training:
        return Training(self.sweep.points[0], self.sweep)


@pytest.fixture(scope="module")
def ran(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("a folder")
    shutil.copytree(data_bin, folder / "bin")
    sweep = make_sweep(CONTENT, folder, "tiny")
    stream = io.StringIO()
    return Ran(sweep, run_sweep(sweep, stream), stream.getvalue())


def updates_in(checkpoint: Path) -> int:
    updates: int = load_checkpoint_to_cpu(str(checkpoint))["optimizer_history"][-1]["num_updates"]
    return updates


def test_result_is_what_fairseq_logged(ran: Ran) -> None:
    result = ran.training.result()
    assert result is not None
    assert result.outcome == "finished"
    log = ran.training.log.read_text()
    logged = re.findall(r'train_inner .*"loss": "([\d.]+)".*"num_updates": "(\d+)"', log)
    assert result.losses == [(int(update), float(loss)) for loss, update in logged]
    assert [update for update, _ in result.losses] == list(range(1, 9))
    assert result.final_loss == result.losses[-1][1]
    validated = (ran.training.folder / "validate.log").read_text()
    for subset in ("valid", "test"):
        (perplexity,) = re.findall(rf'"{subset}_ppl": "([\d.]+)"', validated)
        assert result.scores[subset] == float(perplexity)


def test_gradients_that_are_not_finite_are_a_finding(ran: Ran) -> None:
    result = Training(ran.sweep.points[1], ran.sweep).result()
    assert result is not None
    assert result.outcome == "not finite"
    assert math.isnan(result.final_loss)
    assert "| post-LN, lr 1e+30 | 1/1 | - | - | - |" in ran.finished.tables


def test_training_that_cannot_be_is_named_with_its_log_and_stops_no_other(ran: Ran) -> None:
    (failure,) = ran.finished.failures
    assert failure.startswith("no-model-lr0.001-seed1: training failed (exit status 1). Its log ")
    assert "ValueError: --encoder-embed-dim 16 is not a multiple of" in failure
    assert "no model" not in ran.finished.tables
    assert "no-model-lr0.001-seed1: failed" in ran.progress


def test_results_are_on_disk(ran: Ran) -> None:
    assert (ran.sweep.out / "table.md").read_text() == ran.finished.tables + "\n"
    records = json.loads((ran.sweep.out / "results.json").read_text())
    assert [record["verdict"] for record in records] == ["healthy", "diverged"]
    assert records[1]["final_loss"] is None
    result = ran.training.result()
    assert result is not None
    assert records[0]["scores"] == result.scores


def test_second_run_starts_nothing_and_gives_the_same_table(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    stream = io.StringIO()
    sweep = dataclasses.replace(ran.sweep, points=ran.sweep.points[:2])
    assert run_sweep(sweep, stream) == (ran.finished.tables, [])
    assert stream.getvalue().count("finished before") == 2


def commands(point: int, sweep: Sweep) -> list[str]:
    """The purposes of what a training would run next; nothing is run."""
    return [command.purpose for command in islice(Training(sweep.points[point], sweep).job(), 1)]


def copied(ran: Ran, folder: Path, **changed: Any) -> Sweep:
    """The same sweep, with changes, in a copy of its folder."""
    shutil.copytree(ran.sweep.out.parent, folder)
    return make_sweep({**CONTENT, **changed}, folder, "tiny")


def test_what_has_changed_in_the_file_is_redone_and_nothing_else(ran: Ran, tmp_path: Path) -> None:
    options = {**CONTENT["options"], "max-update": 9}
    changes: list[tuple[dict[str, Any], list[str]]] = [
        ({"jobs": 1}, []),
        ({"options": options}, ["training"]),
        ({"evaluate": {"score": "loss"}}, ["validating"]),
        ({"evaluate": {"score": "none"}}, []),
    ]
    for number, (changed, expected) in enumerate(changes):
        sweep = copied(ran, tmp_path / str(number), **changed)
        assert commands(0, sweep) == expected
    assert not (tmp_path / "1" / "out" / "post-LN-lr0.001-seed1" / "checkpoint_last.pt").exists()


def test_other_data_at_the_same_place_are_seen(ran: Ran, tmp_path: Path) -> None:
    sweep = copied(ran, tmp_path / "copy")
    assert commands(0, sweep) == []
    with next(sweep.data.glob("train*.bin")).open("ab") as file:
        file.write(b"more")
    assert commands(0, sweep) == ["training"]


class Interrupting(io.StringIO):
    """A terminal whose user presses Ctrl-C as soon as there is a checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self._checkpoint = checkpoint

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._checkpoint.is_file():
            raise KeyboardInterrupt
        return super().write(text)


def test_interrupted_training_goes_on_from_its_checkpoint(ran: Ran, tmp_path: Path) -> None:
    options = {**CONTENT["options"], "max-update": 60, "save-interval-updates": 40}
    options["keep-interval-updates"] = 1
    sweep = copied(ran, tmp_path / "copy", options=options, evaluate={"score": "none"})
    sweep = dataclasses.replace(sweep, points=sweep.points[:1])
    training = Training(sweep.points[0], sweep)
    shutil.rmtree(training.folder)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, Interrupting(training.folder / "checkpoint_last.pt"))
    with (sweep.out / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which a training still running has
    assert training.result() is None
    reached = updates_in(training.folder / "checkpoint_last.pt")
    before = training.log.read_text()
    assert run_sweep(sweep, io.StringIO()).failures == []
    later = training.log.read_text().removeprefix(before)
    assert f"@ {reached} updates)" in later
    result = training.result()
    assert result is not None
    assert [update for update, _ in result.losses] == list(range(1, 61))


def test_second_sweep_in_the_same_folder_is_refused(ran: Ran) -> None:
    with (ran.sweep.out / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SweepError, match="another sweep, or what it left, is at work in"):
            run_sweep(ran.sweep, io.StringIO())


def test_folder_of_something_else_is_left_alone(ran: Ran, tmp_path: Path) -> None:
    sweep = dataclasses.replace(ran.sweep, out=tmp_path, points=ran.sweep.points[:1])
    (tmp_path / sweep.points[0].name).mkdir()
    thesis = tmp_path / sweep.points[0].name / "thesis.tex"
    thesis.write_text("the only copy")
    (failure,) = run_sweep(sweep, io.StringIO()).failures
    assert "is not of a sweep's making: give another out" in failure
    assert thesis.read_text() == "the only copy"


def test_out_that_cannot_be_written_to_is_named(ran: Ran, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SweepError, match=r"cannot write to .*file/out: Not a directory"):
        run_sweep(dataclasses.replace(ran.sweep, out=tmp_path / "file" / "out"), io.StringIO())


def test_what_fairseq_cannot_take_is_refused_before_anything_is_written(
    ran: Ran, tmp_path: Path
) -> None:
    with pytest.raises(SweepError, match="fairseq takes : for the end of a path"):
        run_sweep(dataclasses.replace(ran.sweep, out=tmp_path / "a:b"), io.StringIO())
    unknown = make_sweep({**CONTENT, "grid": {"rate": [1]}}, ran.sweep.out.parent, "tiny")
    with pytest.raises(SweepError, match="unrecognized arguments: --rate=1"):
        run_sweep(dataclasses.replace(unknown, out=tmp_path / "other"), io.StringIO())
    assert list(tmp_path.iterdir()) == []


def stub_training(ran: Ran, folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> Training:
    """A training whose command is a Python program of the test's."""
    monkeypatch.setattr(training, "fairseq_command", lambda *_: [sys.executable, "-S", "-c", code])
    sweep = dataclasses.replace(
        ran.sweep, out=folder, points=ran.sweep.points[:1], evaluation=Evaluation("none", "", {})
    )
    assert run_sweep(sweep, io.StringIO()).failures == []
    return Training(sweep.points[0], sweep)


def test_training_that_the_monitors_stopped_has_a_result(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """print('x | train_inner | {"loss": "6", "num_updates": "1"}'); raise SystemExit(3)"""
    result = stub_training(ran, tmp_path, monkeypatch, code).result()
    assert result is not None
    assert (result.outcome, result.losses) == ("stopped", [(1, 6.0)])
    assert "| post-LN, lr 0.001 | 1/1 | - |" in (tmp_path / "table.md").read_text()


def test_of_two_attempts_the_later_counts_and_a_torn_line_does_not(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        'x | train_inner | {"loss": "6", "num_updates": "1"}',
        'x | train_inner | {"loss": "5", "num_updates": "2"}',
        'x | train_inner | {"loss": "4", "num_upx | train | begins {"again": 1}',
        'x | train_inner | {"loss": "5.5", "num_updates": "2"}',
        'x | train_inner | {"loss": "nan", "num_updates": "3"}',
    ]
    result = stub_training(ran, tmp_path, monkeypatch, f"print({chr(10).join(lines)!r})").result()
    assert result is not None
    assert result.losses[:2] == [(1, 6.0), (2, 5.5)]
    assert result.losses[2][0] == 3
    assert math.isnan(result.losses[2][1])
    assert math.isnan(result.final_loss)


@pytest.mark.parametrize(
    ("gpus", "jobs", "named", "expected"),
    [
        (2, None, None, ["0", "1"]),
        (2, 3, None, ["0", "1", "0"]),
        (2, None, "4,7", ["4", "7"]),
        (0, None, None, [None]),
        (0, 2, None, [None, None]),
    ],
)
def test_places_are_the_gpus_that_there_are(
    ran: Ran,
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    jobs: int | None,
    named: str | None,
    expected: list[str | None],
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    point = dataclasses.replace(ran.sweep.points[0], options={"arch": "x"})
    found = places(dataclasses.replace(ran.sweep, points=(point,), jobs=jobs))
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in found] == expected
    assert {place.get("OMP_NUM_THREADS") for place in found} == {"1" if len(found) > 1 else None}
    on_cpu = places(dataclasses.replace(ran.sweep, jobs=1))
    assert on_cpu == [{}]
