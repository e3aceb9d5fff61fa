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
SHARED = ("task", "source-lang", "target-lang", "cpu", "fp16")
BATCH_SIZE = ("max-tokens", "batch-size")

_TEXT = r"^{kind}-(\d+)\t{score}([^\n]*)$"
_WER = r"^Generate {subset} with .* WER: ([\d.]+)$"
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
    if evaluation.score in ("bleu", "wer"):
        scoring = {"scoring": "wer"} if evaluation.score == "wer" else {}
        for subset in evaluation.subsets:
            generate = {**options, **scoring, "gen-subset": subset, **evaluation.options}
            arguments = fairseq_command("generate", data, generate)
            yield Command(f"generating {subset}", arguments, folder / f"generate-{subset}.log")
    else:
        options |= {option: trained[option] for option in BATCH_SIZE if option in trained}
        options |= {"valid-subset": ",".join(evaluation.subsets), "log-format": "json"}
        arguments = fairseq_command("validate", data, {**options, **evaluation.options})
        yield Command("validating", arguments, folder / "validate.log")


def read_scores(evaluation: Evaluation, folder: Path) -> Scores:
    """The scores, from what the commands have written.

    Raises:
        SweepError: a translation, a score or sacreBLEU is missing.
    """
    if evaluation.score == "bleu":
        return _bleu(evaluation, folder)
    if evaluation.score == "wer":
        return Scores({subset: _wer(folder, subset) for subset in evaluation.subsets})
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


def _wer(folder: Path, subset: str) -> float:
    file = folder / f"generate-{subset}.log"
    found = re.findall(_WER.format(subset=subset), file.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise SweepError(f"{file} has no WER of {subset}")
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
