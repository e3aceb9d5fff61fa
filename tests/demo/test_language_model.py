"""The language-model demo end to end on a tiny scale, through fairseq's real commands."""

import dataclasses
import io
import json
import math
import re
import subprocess
from pathlib import Path

import pytest
import sentencepiece

from sigma_fairseq.demo.language_model import LanguageModelDemo
from sigma_fairseq.demo.run import run_demo
from sigma_fairseq.demo.settings import LanguageModelSettings
from sigma_fairseq.sweep.processes import SweepError
from tests.demo.ran import Ran

TINY = LanguageModelSettings(
    seed=5,
    updates=3,
    tokens_per_update=64,
    block=16,
    methods={"σReparam": {"arch": "transformer_lm_reparam_noln_wiki103_16l", "lr": 1}},
    held_out=1500,
    vocabulary=200,
    cutoffs="50,100",
    layers=2,
    width=16,
    feed_forward=16,
    heads=2,
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(LanguageModelDemo(TINY), tmp_path_factory.mktemp("a folder") / "demo")


def test_pieces_joined_are_the_text_and_no_paragraph_is_in_two_parts(ran: Ran) -> None:
    bpe = sentencepiece.SentencePieceProcessor(model_file=str(ran.data / "bpe.model"))
    paragraphs: list[str] = []
    for part in ("train", "valid", "test"):
        lines = (ran.data / "text" / f"{part}.txt").read_text().splitlines()
        pieces = (ran.data / "pieces" / f"{part}.txt").read_text().splitlines()
        assert [bpe.decode(line.split()) for line in pieces] == lines
        paragraphs += lines
        if part != "train":
            assert 0 < sum(map(len, lines)) <= 1500
    assert len(set(paragraphs)) == len(paragraphs) > 500


def test_table_has_the_perplexity_that_eval_lm_found_on_every_piece(ran: Ran) -> None:
    scores = json.loads((ran.training / "result.json").read_text())["scores"]
    for part in ("valid", "test"):
        log = (ran.training / f"eval_lm-{part}.log").read_text()
        (loss,) = re.findall(r"Loss \(base 2\): ([\d.]+)", log)
        assert scores[part] == pytest.approx(2 ** float(loss), rel=1e-3)
        (evaluated,) = re.findall(r"Evaluated ([\d,]+) tokens", log)
        lines = (ran.data / "pieces" / f"{part}.txt").read_text().splitlines()
        pieces = sum(len(line.split()) + 1 for line in lines)
        assert math.isclose(int(evaluated.replace(",", "")), pieces, abs_tol=8)
    (line,) = (line for line in ran.printed.splitlines() if line.startswith("| σReparam"))
    assert line.endswith(f"| **{scores['valid']:.2f}** | **{scores['test']:.2f}** |")
    assert "| valid ppl | test ppl |" in ran.printed


def test_paragraph_is_what_the_model_wrote_after_the_prompt(ran: Ran) -> None:
    log = (ran.training / "sample.log").read_text()
    (pieces,) = re.findall(r"^H-0\t\S+\t(.*)$", log, re.MULTILINE)
    bpe = sentencepiece.SentencePieceProcessor(model_file=str(ran.data / "bpe.model"))
    text = bpe.decode(pieces.split())
    assert text.startswith("The")
    _, paragraph, report = ran.printed.rsplit("\n\n", 2)
    # Words that are too long for a line are broken.
    assert "".join(paragraph.split()) == "".join(text.split())
    assert max(map(len, paragraph.splitlines())) <= 80
    assert report.startswith("Report: ")


def test_settings_stand_above_the_table(ran: Ran) -> None:
    heading = ran.printed.split("\n\n")[0]
    words = len((ran.data / "text" / "train.txt").read_text().split())
    parts = (
        "seed 5",
        f"{words:,} words",
        "2 layers of width 16",
        "3 updates",
        "the 8 to 15 pieces",
    )
    for part in parts:
        assert part in heading
    assert max(map(len, heading.splitlines())) < 120


def test_second_run_starts_nothing_and_prints_the_same(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran.again_starting_nothing(monkeypatch) == ran.printed


def test_sample_that_was_cut_off_is_all_that_is_run_again(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    start = subprocess.Popen

    def keep(arguments: list[str], **kwargs: object) -> object:
        started.append(arguments[2])
        return start(arguments, **kwargs)  # type: ignore[call-overload]

    log = ran.training / "sample.log"
    log.write_text(log.read_text().partition("\nD-0")[0] + "\nD-0\t-1.0\tThe half")
    monkeypatch.setattr(subprocess, "Popen", keep)
    assert ran.again() == ran.printed
    assert started == ["fairseq_cli.interactive"]


def test_data_are_of_their_settings(ran: Ran) -> None:
    assert LanguageModelDemo(TINY).has_data(ran.data)
    for changed in ({"seed": 6}, {"held_out": 1501}, {"vocabulary": 201}):
        assert not LanguageModelDemo(dataclasses.replace(TINY, **changed)).has_data(ran.data)


def test_python_without_its_help_texts_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sigma_fairseq.demo.run.find_spec", lambda name: None if name == "pydoc_data" else name
    )
    with pytest.raises(SweepError, match="the demo needs pydoc_data, which is not installed"):
        run_demo(tmp_path, LanguageModelDemo(TINY), 1, io.StringIO())
    assert list(tmp_path.iterdir()) == []
