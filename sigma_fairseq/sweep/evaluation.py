"""Scores of a trained model on subsets of the data, by fairseq's own tools."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sigma_fairseq.sweep.commands import fairseq_command
from sigma_fairseq.sweep.processes import Command, SweepError
from sigma_fairseq.sweep.settings import Evaluation, Options, Value

#: Options of the training that an evaluation shares, where it does not give its own.
SHARED = ("task", "source-lang", "target-lang", "tokens-per-sample", "cpu", "fp16")
BATCH_SIZE = ("max-tokens", "batch-size")

_TEXT = r"^{kind}-(\d+)\t{score}([^\n]*)$"
_WER = r"^Generate {subset} with .* WER: ([\d.]+)$"
_PERPLEXITY = r"Loss \(base 2\): .*, Perplexity: (\S+)$"
_DUMPED = r"\| {subset} \| (\{{[^{{}}]*\}})"


class Scores(NamedTuple):
    """Subset → score, and sacreBLEU's account of how BLEU was computed ("" for other scores)."""

    scores: dict[str, float]
    signature: str = ""


def evaluation_commands(
    evaluation: Evaluation, trained: Options, data: Path, folder: Path
) -> Iterator[Command]:
    """What to run before `read_scores`.

    Args:
        evaluation: how to score.
        trained: fairseq-train's options.
        data: what fairseq-preprocess wrote.
        folder: the training's; its best checkpoint is taken, or the last where training did not
            validate.
    """
    checkpoint = folder / "checkpoint_best.pt"
    if not checkpoint.is_file():
        checkpoint = folder / "checkpoint_last.pt"
    # fairseq-validate has no default task; fairseq-train's is this one.
    options: dict[str, Value] = {"task": "translation"}
    options |= {option: trained[option] for option in SHARED if option in trained}
    options |= {"path": str(checkpoint), "no-progress-bar": True}
    tool = _tool(evaluation, trained)
    if tool != "generate":
        options |= {option: trained[option] for option in BATCH_SIZE if option in trained}
    if tool == "validate":
        options |= {"valid-subset": ",".join(evaluation.subsets), "log-format": "json"}
        arguments = fairseq_command(tool, data, {**options, **evaluation.options})
        yield Command("validating", arguments, folder / "validate.log")
        return
    if evaluation.score == "wer":
        options["scoring"] = "wer"
    for subset in evaluation.subsets:
        arguments = fairseq_command(
            tool, data, {**options, "gen-subset": subset, **evaluation.options}
        )
        yield Command(f"evaluating on {subset}", arguments, folder / f"{tool}-{subset}.log")


def read_scores(evaluation: Evaluation, trained: Options, folder: Path) -> Scores:
    """The scores, from what the commands have written.

    Args:
        evaluation: how to score.
        trained: fairseq-train's options.
        folder: the training's.

    Raises:
        SweepError: a translation, a score or sacreBLEU is missing.
    """
    if evaluation.score == "bleu":
        return _bleu(evaluation, folder)
    if _tool(evaluation, trained) == "validate":
        return _validated(evaluation, folder)
    return Scores({subset: _said(evaluation, folder, subset) for subset in evaluation.subsets})


def _tool(evaluation: Evaluation, trained: Options) -> str:
    """Which of fairseq's gives the score."""
    if evaluation.score in ("bleu", "wer"):
        return "generate"
    # fairseq-validate gives no token the context of the block before.
    is_perplexity_of_text = (evaluation.score, trained.get("task")) == (
        "perplexity",
        "language_modeling",
    )
    return "eval_lm" if is_perplexity_of_text else "validate"


def _validated(evaluation: Evaluation, folder: Path) -> Scores:
    log = (folder / "validate.log").read_text(encoding="utf-8")
    key = {"perplexity": "ppl", "loss": "loss"}[evaluation.score]
    scores = {}
    for subset in evaluation.subsets:
        found = re.findall(_DUMPED.format(subset=subset), log)
        figures = json.loads(found[-1]) if found else {}
        if f"{subset}_{key}" not in figures:
            raise SweepError(f"{folder / 'validate.log'} has no {key} of {subset}")
        scores[subset] = float(figures[f"{subset}_{key}"])
    return Scores(scores)


def _said(evaluation: Evaluation, folder: Path, subset: str) -> float:
    """The score that a tool ends the log of a subset with."""
    log, pattern, name = {
        "wer": (f"generate-{subset}.log", _WER.format(subset=subset), "WER"),
        "perplexity": (f"eval_lm-{subset}.log", _PERPLEXITY, "perplexity"),
    }[evaluation.score]
    found = re.findall(pattern, (folder / log).read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise SweepError(f"{folder / log} has no {name} of {subset}")
    return float(found[-1])


def _bleu(evaluation: Evaluation, folder: Path) -> Scores:
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=evaluation.tokenize)
    scores = {}
    for subset in evaluation.subsets:
        file = folder / f"generate-{subset}.log"
        log = file.read_text(encoding="utf-8")
        references = dict(re.findall(_TEXT.format(kind="T", score=""), log, re.MULTILINE))
        # Of several translations of a sentence the first is the best, so it goes in last.
        found = re.findall(_TEXT.format(kind="D", score=r"[^\t]*\t"), log, re.MULTILINE)
        translations = dict(reversed(found))
        if not references or translations.keys() != references.keys():
            raise SweepError(
                f"{len(translations)} of {len(references)} sentences have a translation in {file}"
            )
        pairs = [(translations[sentence], references[sentence]) for sentence in references]
        hypotheses, targets = zip(*pairs, strict=True)
        scores[subset] = metric.corpus_score(hypotheses, [targets]).score
    return Scores(scores, str(metric.get_signature()))
