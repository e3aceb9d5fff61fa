"""The demo end to end on a tiny scale, through fairseq's real commands."""

import dataclasses
import fcntl
import io
import json
import re
import shutil
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
from fairseq.checkpoint_utils import load_checkpoint_to_cpu

from sigma_fairseq.demo.corpus import load_corpus
from sigma_fairseq.demo.processes import CommandFailedError, DemoError, run_jobs
from sigma_fairseq.demo.run import run_demo
from sigma_fairseq.demo.settings import Contender, Model, Settings
from sigma_fairseq.demo.training import Training

POST_LN = Contender(Model("post-LN", "transformer_postln_6l"), 1e-3)
TOO_HOT = Contender(Model("too hot", "transformer_postln_6l"), 1e30)
TINY = Settings(
    seed=5,
    updates=6,
    sentences_per_update=8,
    contenders=(POST_LN, TOO_HOT),
    train_pairs=24,
    valid_pairs=4,
    test_pairs=12,
    vocabulary=60,
    width=16,
    feed_forward=16,
    heads=2,
)


class Finished(NamedTuple):
    out: Path
    table: str
    progress: str

    @property
    def training(self) -> Path:
        return self.out / "seed5" / "transformer_postln_6l-lr0.001"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("a folder") / "demo"
    stream = io.StringIO()
    return Finished(out, run_demo(out, TINY, 2, stream), stream.getvalue())


def read_lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def updates_in(checkpoint: Path) -> int:
    updates: int = load_checkpoint_to_cpu(str(checkpoint))["optimizer_history"][-1]["num_updates"]
    return updates


def test_table_says_what_the_runs_gave(finished: Finished) -> None:
    result = json.loads((finished.training / "result.json").read_text())
    log = (finished.training / "train.log").read_text()
    (last,) = re.findall(r'train_inner .*"loss": "([\d.]+)".*"num_updates": "6"', log)
    assert result["loss"] == float(last)
    assert updates_in(finished.training / "checkpoint_last.pt") == 6
    row = next(line for line in finished.table.splitlines() if line.startswith("post-LN "))
    assert row.split(maxsplit=7) == [
        *("post-LN", "0.001", "no", f"{result['loss']:.3f}", f"{result['bleu']:.1f}"),
        *(f"{result['exact_match']:.1%}", f"{result['seconds']:.0f}", str(finished.training)),
    ]
    assert read_lines(finished.out / "seed5" / "table.txt") == finished.table.splitlines()


def test_bleu_and_exact_match_are_of_the_text_that_was_generated(finished: Finished) -> None:
    from sacrebleu import corpus_bleu

    generated = dict(
        re.findall(r"^D-(\d+)\t\S+\t(.*)$", (finished.training / "generate.log").read_text(), re.M)
    )
    hypotheses = [generated[str(number)] for number in range(12)]
    references = read_lines(finished.out / "seed5" / "data" / "text" / "test.de")
    result = json.loads((finished.training / "result.json").read_text())
    assert result["bleu"] == corpus_bleu(hypotheses, [references], tokenize="char").score
    assert result["exact_match"] == sum(map(str.__eq__, hypotheses, references)) / 12


def test_gradients_that_are_not_finite_are_a_finding_and_no_error(finished: Finished) -> None:
    row = next(line for line in finished.table.splitlines() if line.startswith("too hot"))
    assert re.search(r"1e\+30  diverged after \d\+ updates", row)
    assert re.search(r"too hot at 1e\+30: diverged after \d\+ updates", finished.progress)


def test_progress_tells_of_every_training(finished: Finished) -> None:
    assert f"post-LN at 0.001: 6 updates, log in {finished.training / 'train.log'}" in (
        finished.progress
    )
    assert re.search(r"post-LN at 0.001: loss [\d.]+, exact match [\d.]+%", finished.progress)
    assert len(finished.progress.splitlines()) < 20


def test_second_run_starts_nothing_and_gives_the_same_table(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    stream = io.StringIO()
    assert run_demo(finished.out, TINY, 2, stream) == finished.table
    assert stream.getvalue().count("finished before") == 2


class Interrupting(io.StringIO):
    """A terminal whose user presses Ctrl-C as soon as there is a new checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._first = checkpoint.stat().st_mtime_ns

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._checkpoint.stat().st_mtime_ns != self._first:
            raise KeyboardInterrupt
        return super().write(text)


def test_interrupted_training_is_not_finished_and_the_next_run_goes_on_with_it(
    finished: Finished, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished.out, out)
    training = out / finished.training.relative_to(finished.out)
    checkpoint = training / "checkpoint_last.pt"
    settings = dataclasses.replace(TINY, updates=10**6, contenders=(POST_LN,))
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, settings, 1, Interrupting(checkpoint))
    with (out / "seed5" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which a training still running has
    assert not (training / "result.json").exists()

    reached = updates_in(checkpoint)
    assert reached > 6
    before = (training / "train.log").read_text()
    settings = dataclasses.replace(settings, updates=reached + 3)
    corpus = load_corpus(out / "seed5" / "data", settings)
    assert corpus is not None
    job = Training(POST_LN, settings, corpus, training).job()
    run_jobs([islice(job, 1)], 1, lambda: None)
    later = (training / "train.log").read_text().removeprefix(before)
    assert f"@ {reached} updates)" in later
    assert re.findall(r'"train_num_updates": "(\d+)"', later) == [str(reached + 3)]
    assert updates_in(checkpoint) == reached + 3


def test_failing_training_gives_the_log_and_its_end_and_leaves_no_result(
    finished: Finished,
) -> None:
    unknown = Contender(Model("unknown", "transformer_of_no_kind"), 1e-3)
    settings = dataclasses.replace(TINY, contenders=(unknown,))
    with pytest.raises(CommandFailedError) as raised:
        run_demo(finished.out, settings, 1, io.StringIO())
    folder = finished.out / "seed5" / "transformer_of_no_kind-lr0.001"
    assert f"training unknown at 0.001 failed (exit status 2). Its log {folder / 'train.log'}" in (
        str(raised.value)
    )
    assert "invalid choice: 'transformer_of_no_kind'" in str(raised.value)
    assert not (folder / "result.json").exists()


def test_other_settings_and_fewer_updates_start_afresh(finished: Finished, tmp_path: Path) -> None:
    corpus = load_corpus(finished.out / "seed5" / "data", TINY)
    assert corpus is not None
    changes: tuple[dict[str, Any], ...] = (
        {"width": 32},
        {"sentences_per_update": 4},
        {"updates": 5},
    )
    for number, changed in enumerate(changes):
        folder = tmp_path / str(number)
        shutil.copytree(finished.training, folder)
        same = Training(POST_LN, TINY, corpus, folder)
        assert same.result() is not None
        other = Training(POST_LN, dataclasses.replace(TINY, **changed), corpus, folder)
        assert other.result() is None
        command = next(other.job())
        assert command.purpose == "training post-LN at 0.001"
        assert sorted(file.name for file in folder.iterdir()) == ["options.json"]


def test_training_without_its_result_is_only_translated_with(
    finished: Finished, tmp_path: Path
) -> None:
    corpus = load_corpus(finished.out / "seed5" / "data", TINY)
    assert corpus is not None
    folder = tmp_path / "copy"
    shutil.copytree(finished.training, folder)
    before = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    training = Training(POST_LN, TINY, corpus, folder)
    job = training.job()
    assert next(job).purpose == "translating with post-LN at 0.001"
    assert list(job) == []
    result = training.result()
    assert result is not None
    assert dataclasses.asdict(result) == before


def test_data_of_other_settings_are_not_used(finished: Finished) -> None:
    data = finished.out / "seed5" / "data"
    assert load_corpus(data, TINY) is not None
    changes: tuple[dict[str, Any], ...] = ({"seed": 6}, {"train_pairs": 25}, {"vocabulary": 61})
    for changed in changes:
        assert load_corpus(data, dataclasses.replace(TINY, **changed)) is None
    assert load_corpus(data.parent, TINY) is None


def test_broken_checkpoint_is_named(finished: Finished, tmp_path: Path) -> None:
    corpus = load_corpus(finished.out / "seed5" / "data", TINY)
    assert corpus is not None
    folder = tmp_path / "copy"
    shutil.copytree(finished.training, folder)
    checkpoint = folder / "checkpoint_last.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(DemoError, match=r"cannot read .*checkpoint_last\.pt .*: remove .*copy to"):
        Training(POST_LN, TINY, corpus, folder).result()


def test_second_demo_in_the_same_folder_is_refused(finished: Finished) -> None:
    with (finished.out / "seed5" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DemoError, match="another demo, or what it left, is at work in"):
            run_demo(finished.out, TINY, 1, io.StringIO())


@pytest.mark.parametrize("name", ["data", "transformer_postln_6l-lr0.001"])
def test_folder_of_something_else_is_left_alone(
    finished: Finished, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out / "seed5" / "data", out / "seed5" / "data")
    shutil.rmtree(out / "seed5" / name, ignore_errors=True)
    (out / "seed5" / name).mkdir()
    (out / "seed5" / name / "thesis.tex").write_text("the only copy")
    with pytest.raises(DemoError, match="not of the demo's making: give another --out"):
        run_demo(out, TINY, 1, io.StringIO())
    assert (out / "seed5" / name / "thesis.tex").read_text() == "the only copy"


def test_out_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match=r"cannot write to .*file/seed5: Not a directory"):
        run_demo(tmp_path / "file", TINY, 1, io.StringIO())


def test_what_fairseq_cannot_take_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="fairseq takes : in "):
        run_demo(tmp_path / "a:b", TINY, 1, io.StringIO())
    assert list(tmp_path.iterdir()) == []
