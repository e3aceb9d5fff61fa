"""The speech demo end to end on a tiny scale, through fairseq's real commands."""

import dataclasses
import io
import json
import re
from pathlib import Path

import jiwer
import pytest
import soundfile

from sigma_fairseq.demo.number_words import english
from sigma_fairseq.demo.run import run_demo
from sigma_fairseq.demo.settings import SpeechSettings
from sigma_fairseq.demo.speech import SpeechDemo
from sigma_fairseq.speech.features import log_mel
from sigma_fairseq.sweep.processes import SweepError
from tests.demo.ran import Ran

TINY = SpeechSettings(
    seed=5,
    updates=4,
    seconds_per_update=10,
    methods={"pre-LN": {"arch": "ctc_transformer_preln_36l"}},
    train_utterances=12,
    valid_utterances=3,
    test_utterances=4,
    layers=2,
    width=16,
    feed_forward=16,
    heads=2,
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(SpeechDemo(TINY), tmp_path_factory.mktemp("a folder") / "demo")


def manifest(file: Path) -> list[list[str]]:
    return [line.split("\t") for line in file.read_text().splitlines()[1:]]


def test_manifests_are_of_the_audio_and_no_number_is_in_two(ran: Ran) -> None:
    words = {english(number).replace("-", " ") for number in range(1000)}
    texts: list[str] = []
    for part, size in (("train", 12), ("valid", 3), ("test", 4)):
        rows = manifest(ran.data / f"{part}.tsv")
        assert len(rows) == size
        for _, audio, frames, text, _ in rows:
            assert soundfile.info(ran.data / "audio" / audio).samplerate == 16_000
            assert len(log_mel(ran.data / "audio" / audio)) == int(frames)
            texts.append(text)
    assert len(set(texts)) == 19
    assert set(texts) < words


def test_table_has_the_word_error_rate_of_what_was_generated(ran: Ran) -> None:
    log = (ran.training / "generate-test.log").read_text()
    generated = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", log, re.MULTILINE))
    references = [row[3] for row in manifest(ran.data / "test.tsv")]
    rate = 100 * jiwer.wer(references, [generated[str(number)] for number in range(4)])
    scores = json.loads((ran.training / "result.json").read_text())["scores"]
    assert scores["test"] == pytest.approx(rate, abs=5e-3)
    (line,) = (line for line in ran.printed.splitlines() if line.startswith("| pre-LN"))
    assert f"| **{rate:.1f}** |" in line
    assert "| valid WER | test WER |" in ran.printed


def test_heading_says_that_nobody_speaks(ran: Ran) -> None:
    heading = ran.printed.split("\n\n")[0]
    for part in ("synthesised speaker (no human voice)", "seed 5", "12 utterances", "4 updates"):
        assert part in heading
    assert max(map(len, heading.splitlines())) < 120


def test_report_page_has_encoder_attention_and_only_the_tasks_own_options(ran: Ran) -> None:
    page = (ran.out / "speech-seed5" / "report" / "report.html").read_text()
    assert "encoder self" in page
    assert "decoder self" not in page
    assert "Namespace" not in page


def test_second_run_starts_nothing_and_prints_the_same(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran.again_starting_nothing(monkeypatch) == ran.printed


def test_data_are_of_the_seed_and_of_nothing_else(ran: Ran, tmp_path: Path) -> None:
    def made(settings: SpeechSettings, name: str) -> Path:
        assert list(SpeechDemo(settings).make_data(tmp_path / name)) == []
        return tmp_path / name

    again, other = made(TINY, "again"), made(dataclasses.replace(TINY, seed=6), "other")
    for file in ("train.tsv", "config.yaml", "dict.txt", "audio/test-0.flac"):
        assert (again / file).read_bytes() == (ran.data / file).read_bytes()
    assert (other / "train.tsv").read_bytes() != (again / "train.tsv").read_bytes()
    assert SpeechDemo(TINY).has_data(again)
    assert not SpeechDemo(TINY).has_data(other)
    assert not SpeechDemo(TINY).has_data(tmp_path)


def test_data_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "speech-seed5" / "data").mkdir(parents=True)
    thesis = tmp_path / "speech-seed5" / "data" / "thesis.tex"
    thesis.write_text("the only copy")
    with pytest.raises(SweepError, match="not of the demo's making: give another --out"):
        run_demo(tmp_path, SpeechDemo(TINY), 1, io.StringIO())
    assert thesis.read_text() == "the only copy"
