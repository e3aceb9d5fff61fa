"""The translation demo end to end on a tiny scale, through fairseq's real commands."""

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sigma_fairseq.demo.run import run_demo
from sigma_fairseq.demo.settings import TranslationSettings
from sigma_fairseq.demo.translation import TranslationDemo
from sigma_fairseq.demo.translation_corpus import load_corpus
from sigma_fairseq.sweep.processes import SweepError
from tests.demo.ran import Ran

TINY = TranslationSettings(
    seed=5,
    updates=6,
    sentences_per_update=8,
    methods={"post-LN": {"arch": "transformer_postln_6l"}},
    train_pairs=24,
    valid_pairs=4,
    test_pairs=12,
    vocabulary=60,
    width=16,
    feed_forward=16,
    heads=2,
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(TranslationDemo(TINY), tmp_path_factory.mktemp("a folder") / "demo")


def read_lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def test_table_holds_what_the_training_gave(ran: Ran) -> None:
    log = (ran.training / "train.log").read_text()
    (last,) = re.findall(r'train_inner .*"loss": "([\d.]+)".*"num_updates": "6"', log)
    scores = json.loads((ran.training / "result.json").read_text())["scores"]
    assert (
        f"| post-LN, lr 0.003 | 0/1 | **{float(last):.3f}** | **{scores['valid']:.1f}** | "
        f"**{scores['test']:.1f}** |"
    ) in ran.printed.splitlines()


def test_bleu_is_of_the_text_that_was_generated_against_the_text_that_was_written(
    ran: Ran,
) -> None:
    from sacrebleu import corpus_bleu

    log = (ran.training / "generate-test.log").read_text()
    generated = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", log, re.MULTILINE))
    references = read_lines(ran.data / "text" / "test.de")
    hypotheses = [generated[str(number)] for number in range(12)]
    result = json.loads((ran.training / "result.json").read_text())
    assert result["scores"]["test"] == corpus_bleu(hypotheses, [references], tokenize="char").score


def test_report_page_is_there_with_what_the_monitors_recorded(ran: Ran) -> None:
    page = Path(ran.printed.splitlines()[-1].removeprefix("Report: "))
    assert page == ran.out / "seed5" / "report" / "report.html"
    assert "Attention entropy" in page.read_text()
    assert (ran.training / "monitor.npy").is_file()


def test_settings_stand_above_the_table(ran: Ran) -> None:
    for part in ("seed 5", "width 16", "24 pairs", "6 updates of 8 sentences"):
        assert part in ran.printed
    assert max(map(len, ran.printed.split("\n\n")[0].splitlines())) < 120


def test_second_run_starts_nothing_and_prints_the_same(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran.again_starting_nothing(monkeypatch) == ran.printed


def test_data_of_other_settings_are_not_used(ran: Ran) -> None:
    data = ran.data
    assert load_corpus(data, TINY) is not None
    changes: tuple[dict[str, Any], ...] = ({"seed": 6}, {"train_pairs": 25}, {"vocabulary": 61})
    for changed in changes:
        assert load_corpus(data, dataclasses.replace(TINY, **changed)) is None
    assert load_corpus(data.parent, TINY) is None


def test_training_that_cannot_be_is_an_error(ran: Ran, tmp_path: Path) -> None:
    shutil.copytree(ran.data, tmp_path / "seed5" / "data")
    methods = {"mine": {"arch": "transformer_of_no_kind"}}
    demo = TranslationDemo(dataclasses.replace(TINY, methods=methods))
    with pytest.raises(SweepError, match="there is no architecture transformer_of_no_kind"):
        run_demo(tmp_path, demo, 1, io.StringIO())
    (tmp_path / "seed5" / "runs" / "post-LN-lr0.003-seed5").mkdir(parents=True)
    with pytest.raises(SweepError, match="is not of a sweep's making: give another out"):
        run_demo(tmp_path, TranslationDemo(TINY), 1, io.StringIO())


def test_data_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "seed5" / "data").mkdir(parents=True)
    thesis = tmp_path / "seed5" / "data" / "thesis.tex"
    thesis.write_text("the only copy")
    with pytest.raises(SweepError, match="not of the demo's making: give another --out"):
        run_demo(tmp_path, TranslationDemo(TINY), 1, io.StringIO())
    assert thesis.read_text() == "the only copy"


def test_out_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SweepError, match=r"cannot write to .*file/seed5: Not a directory"):
        run_demo(tmp_path / "file", TranslationDemo(TINY), 1, io.StringIO())


def test_what_fairseq_cannot_take_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="fairseq takes : in "):
        run_demo(tmp_path / "a:b", TranslationDemo(TINY), 1, io.StringIO())
    assert list(tmp_path.iterdir()) == []
