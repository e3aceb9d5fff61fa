"""Scores out of what fairseq's tools print."""

import math
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from sacrebleu import corpus_bleu

from sigma_fairseq.sweep.commands import fairseq_arguments
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
    found = read_scores(BLEU, {}, tmp_path)
    assert found.scores["valid"] == corpus_bleu(BEST, [TARGETS], tokenize="char").score
    assert found.scores["test"] == pytest.approx(100)
    assert "tok:char" in found.signature


def test_sentence_without_translation_is_an_error(tmp_path: Path) -> None:
    write_generated(tmp_path, "valid", [0, 1])
    log = tmp_path / "generate-valid.log"
    log.write_text(log.read_text().replace("D-1", "X-1"))
    with pytest.raises(SweepError, match=r"1 of 2 sentences have a translation in .*valid.log"):
        read_scores(BLEU, {}, tmp_path)


def test_word_error_rate_is_what_fairseq_printed_last(tmp_path: Path) -> None:
    wer = Evaluation("wer", "13a", {}, ["dev-clean", "test"])
    for subset, rate in (("dev-clean", "12.34"), ("test", "100.00")):
        lines = ["H-0\t-1.0\ta WER: 7", f"Generate {subset} with beam=5: WER: {rate}", ""]
        (tmp_path / f"generate-{subset}.log").write_text("\n".join(lines))
    assert read_scores(wer, {}, tmp_path).scores == {"dev-clean": 12.34, "test": 100.0}
    (tmp_path / "generate-test.log").write_text("Generate dev-clean with beam=5: WER: 1.00\n")
    with pytest.raises(SweepError, match=r"generate-test.log has no WER of test"):
        read_scores(wer, {}, tmp_path)


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
        found = read_scores(Evaluation(score, "13a", {}), {}, tmp_path).scores
        assert (found["valid"], found["test"]) == expected
    (tmp_path / "validate.log").write_text("")
    with pytest.raises(SweepError, match=r"validate.log has no loss of valid"):
        read_scores(Evaluation("loss", "13a", {}), {}, tmp_path)


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


Fairseq = Callable[..., "subprocess.CompletedProcess[str]"]

LANGUAGE_MODEL = {
    **{"task": "language_modeling", "cpu": True, "max-tokens": 64, "tokens-per-sample": 16},
    **{"arch": "transformer_lm_preln_wiki103_16l", "criterion": "monitored_adaptive_loss"},
    **{"ddp-backend": "legacy_ddp", "decoder-layers": 1, "decoder-embed-dim": 16},
    **{"decoder-ffn-embed-dim": 16, "decoder-attention-heads": 2},
    **{"adaptive-input-cutoff": "8,16", "adaptive-softmax-cutoff": "8,16"},
    **{"optimizer": "nag", "lr": 1, "clip-norm": 0.1, "max-update": 2},
}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory, fairseq: Fairseq) -> Path:
    """The folder of a language model of nonsense, with its data in `bin/`."""
    folder = tmp_path_factory.mktemp("language model")
    draw = random.Random(0)
    for split, size in (("train", 40), ("valid", 6), ("test", 4)):
        lines = [" ".join(draw.choices("abcdefghijklmnopqrstuvwx", k=9)) for _ in range(size)]
        (folder / split).write_text("\n".join(lines) + "\n")
    splits = (f"--{split}pref={folder}/{split}" for split in ("train", "valid", "test"))
    fairseq("preprocess", "--only-source", *splits, "--destdir", f"{folder}/bin")
    options = {**LANGUAGE_MODEL, "save-dir": str(folder), "disable-validation": True}
    fairseq("train", *fairseq_arguments(folder / "bin", options))
    return folder


def test_perplexity_of_a_language_model_is_by_eval_lm(
    language_model: Path, fairseq: Fairseq
) -> None:
    evaluation = Evaluation("perplexity", "13a", {"context-window": 15})
    for command in evaluation_commands(
        evaluation, LANGUAGE_MODEL, language_model / "bin", language_model
    ):
        with command.log.open("w") as log:
            subprocess.run(command.arguments, stdout=log, stderr=log, check=True)
    scores = read_scores(evaluation, LANGUAGE_MODEL, language_model).scores
    assert scores == {
        subset: pytest.approx(perplexity(language_model, subset, context=15), rel=2e-3)
        for subset in ("valid", "test")
    }
    (language_model / "eval_lm-test.log").write_text("")
    with pytest.raises(SweepError, match=r"eval_lm-test.log has no perplexity of test"):
        read_scores(evaluation, LANGUAGE_MODEL, language_model)


def perplexity(folder: Path, subset: str, context: int) -> float:
    """Of each token given the `context` tokens before it, one forward pass a token."""
    (model,), _, task = load_model_ensemble_and_task(
        [str(folder / "checkpoint_last.pt")], arg_overrides={"data": str(folder / "bin")}
    )
    model.eval()
    task.load_dataset(subset)
    dictionary = task.source_dictionary
    text = " </s> ".join((folder / subset).read_text().splitlines())
    tokens = [dictionary.eos(), *(dictionary.index(word) for word in [*text.split(), "</s>"])]
    cost = 0.0
    for place in range(1, len(tokens)):
        seen = torch.tensor([tokens[max(0, place - 1 - context) : place]])
        logits = model(seen)
        log_probs = model.get_normalized_probs(logits, log_probs=True, sample={"target": None})
        cost -= log_probs[0, -1, tokens[place]].item()
    return math.exp(cost / (len(tokens) - 1))
