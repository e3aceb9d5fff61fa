"""Scores out of what fairseq's tools print."""

from pathlib import Path

import pytest
from sacrebleu import corpus_bleu

from sigma_fairseq.sweep.evaluation import evaluation_commands, read_scores
from sigma_fairseq.sweep.processes import SweepError
from sigma_fairseq.sweep.settings import Evaluation

BLEU = Evaluation("bleu", "char", {"beam": 2, "max-tokens": 99})
TARGETS = ["ein kleiner hund rennt", "zwei frauen sitzen dort", "ein mann liest"]
BEST = ["ein kleiner hund rannte", "zwei frauen sitzen dort", "ein mann las"]


def write_generated(folder: Path, subset: str, sentences: list[int]) -> None:
    """As fairseq-generate does: longest first, two translations of each, among other lines."""
    lines = ["2026-01-01 00:00:00 | INFO | fairseq_cli.generate | loading"]
    for n in sentences:
        lines += [f"S-{n}\tsource", f"T-{n}\t{TARGETS[n]}"]
        for text in (BEST[n], "etwas anderes"):
            lines += [f"H-{n}\t-0.5\tnot this", f"D-{n}\t-0.5\t{text}", f"P-{n}\t-0.1"]
    (folder / f"generate-{subset}.log").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_bleu_is_of_the_best_translations(tmp_path: Path) -> None:
    write_generated(tmp_path, "valid", [2, 0, 1])
    write_generated(tmp_path, "test", [1])
    found = read_scores(BLEU, tmp_path)
    assert found.scores["valid"] == corpus_bleu(BEST, [TARGETS], tokenize="char").score
    assert found.scores["test"] == pytest.approx(100)
    assert "tok:char" in found.signature


def test_sentence_without_translation_is_an_error(tmp_path: Path) -> None:
    write_generated(tmp_path, "valid", [0, 1])
    log = tmp_path / "generate-valid.log"
    log.write_text(log.read_text().replace("D-1", "X-1"))
    with pytest.raises(SweepError, match=r"1 of 2 sentences have a translation in .*valid.log"):
        read_scores(BLEU, tmp_path)


def test_word_error_rate_is_what_fairseq_printed_last(tmp_path: Path) -> None:
    wer = Evaluation("wer", "13a", {}, ["dev-clean", "test"])
    for subset, rate in (("dev-clean", "12.34"), ("test", "100.00")):
        lines = ["H-0\t-1.0\ta WER: 7", f"Generate {subset} with beam=5: WER: {rate}", ""]
        (tmp_path / f"generate-{subset}.log").write_text("\n".join(lines))
    assert read_scores(wer, tmp_path).scores == {"dev-clean": 12.34, "test": 100.0}
    (tmp_path / "generate-test.log").write_text("Generate dev-clean with beam=5: WER: 1.00\n")
    with pytest.raises(SweepError, match=r"generate-test.log has no WER of test"):
        read_scores(wer, tmp_path)


def test_words_are_scored_by_fairseq_on_the_subsets_asked_for(tmp_path: Path) -> None:
    wer = Evaluation("wer", "13a", {"max-tokens": 9}, ["dev-clean"])
    trained = {"task": "ctc_speech", "cpu": True}
    (command,) = evaluation_commands(wer, trained, tmp_path, tmp_path)
    expected = {"--scoring=wer", "--gen-subset=dev-clean", "--task=ctc_speech", "--max-tokens=9"}
    assert expected < {*command.arguments}
    assert command.log == tmp_path / "generate-dev-clean.log"


def test_loss_and_perplexity_are_of_each_subset(tmp_path: Path) -> None:
    (tmp_path / "validate.log").write_text(
        'x | INFO | valid | {"valid_loss": "5.5", "valid_nll_loss": "5", "valid_ppl": "32"}\n'
        'x | INFO | test | {"test_loss": "6.5", "test_nll_loss": "6", "test_ppl": "64"}\n'
    )
    for score, expected in (("loss", (5.5, 6.5)), ("perplexity", (32, 64))):
        found = read_scores(Evaluation(score, "13a", {}), tmp_path).scores
        assert (found["valid"], found["test"]) == expected
    (tmp_path / "validate.log").write_text("")
    with pytest.raises(SweepError, match=r"validate.log has no loss of valid"):
        read_scores(Evaluation("loss", "13a", {}), tmp_path)


def test_best_checkpoint_and_the_options_given_are_taken(tmp_path: Path) -> None:
    trained = {"task": "translation", "cpu": True, "max-tokens": 7, "lr": 1}

    def lines(evaluation: Evaluation) -> list[list[str]]:
        commands = evaluation_commands(evaluation, trained, tmp_path, tmp_path)
        return [command.arguments for command in commands]

    for arguments, subset in zip(lines(BLEU), ("valid", "test"), strict=True):
        assert f"--path={tmp_path}/checkpoint_last.pt" in arguments
        assert {f"--gen-subset={subset}", "--beam=2", "--max-tokens=99", "--cpu"} < {*arguments}
        assert not any(argument.startswith("--lr") for argument in arguments)
    (tmp_path / "checkpoint_best.pt").write_text("")
    (arguments,) = lines(Evaluation("loss", "13a", {}))
    assert f"--path={tmp_path}/checkpoint_best.pt" in arguments
    assert {"--valid-subset=valid,test", "--max-tokens=7"} < {*arguments}
