"""Names and options: what tells runs apart is in the table, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sigma_fairseq.report.runs import load_run
from sigma_fairseq.report.table import compare, distinct_names, shared_options

MakeRun = Callable[..., Path]


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    def names(*paths: str) -> list[str]:
        return distinct_names([tmp_path / path for path in paths])

    assert names("a/seed1") == ["seed1"]
    assert names("a/seed1", "a/seed2") == ["seed1", "seed2"]
    assert names("a/seed1", "b/seed1") == ["a/seed1", "b/seed1"]
    assert names("x/a/s", "y/a/s", "y/b/s") == ["x/a/s", "y/a/s", "y/b/s"]


def test_the_name_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert distinct_names([Path(".")]) == [tmp_path.name]


def test_options_that_differ_are_columns_once(make_run: MakeRun) -> None:
    folders = [
        make_run("a", lr=0.003, norm="deepnorm", save_dir="a"),
        make_run("b", lr=0.01, norm="postln", save_dir="b"),
        make_run("c", lr=0.01, norm="postln", reparam="sigma", layers=4),
    ]
    runs = [load_run(folder) for folder in folders]
    titles, rows = compare(runs)
    columns = dict(zip(titles, zip(*rows, strict=True), strict=True))
    # fairseq has the learning rate in two sections; the sections are named only if they disagree.
    assert columns["lr"] == ("0.003", "0.01", "0.01")
    assert columns["reparam"] == ("–", "–", "sigma")
    assert columns["encoder_layers"] == ("3", "3", "4")
    assert columns["last update"] == ("200 of 1,000",) * 3
    assert "seed" not in columns
    assert shared_options(runs)["common.seed"] == "1"
    assert "optimization.lr" not in shared_options(runs)


def test_a_section_is_named_where_sections_disagree(make_run: MakeRun) -> None:
    runs = [load_run(make_run("a")), load_run(make_run("b"))]
    runs[1].options["common.fp16"] = True
    runs[0].options["ddp.fp16"] = True
    titles, rows = compare(runs)
    columns = dict(zip(titles, zip(*rows, strict=True), strict=True))
    assert columns["common.fp16"] == ("False", "True")
    assert columns["ddp.fp16"] == ("True", "–")


def test_where_a_run_was_saved_is_not_a_difference(make_run: MakeRun) -> None:
    runs = [load_run(make_run(name)) for name in "ab"]
    for run in runs:
        run.options["checkpoint.save_dir"] = str(run.folder)
    assert len(compare(runs)[0]) == 4


def test_what_is_not_finite_is_said(make_run: MakeRun) -> None:
    runs = [load_run(make_run("good")), load_run(make_run("bad", collapses=True, updates=1000))]
    _, (good, bad) = compare(runs)
    assert float(good[2]) > 0
    assert good[3].endswith(")")
    assert bad[2] == "not finite"
    assert bad[3].startswith("not finite (")


def test_a_run_of_which_only_the_log_is_there(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "logged").mkdir()
    point = '| train_inner | {"loss": "7.5", "num_updates": "100", "lr": "0.002"}\n'
    (tmp_path / "logged" / "train.log").write_text(point)
    folders = [make_run("a", lr=0.1), tmp_path / "logged", make_run("b", lr=0.2)]
    titles, rows = compare([load_run(folder) for folder in folders])
    assert rows[1][:4] == ["–", "100", "7.5", "–"]
    assert [row[titles.index("lr")] for row in rows] == ["0.1", "–", "0.2"]
