"""The demo's figures as text."""

from collections.abc import Sequence
from pathlib import Path

from sigma_fairseq.demo.settings import Contender, Settings
from sigma_fairseq.demo.training import FINAL_PART, Result

#: A model counts as trained when its loss is below this part of what unigram frequencies cost.
TRAINED_BELOW = 0.1

Row = tuple[Contender, Result, Path]


def is_trained(result: Result, unigram_loss: float) -> bool:
    """Whether a training got anywhere: see `TRAINED_BELOW`."""
    return result.loss is not None and result.loss < TRAINED_BELOW * unigram_loss


def make_table(settings: Settings, unigram_loss: float, rows: Sequence[Row]) -> str:
    """All rows, what the columns mean, and what the rows say together."""
    lines = [
        f"English number words to German ones, seed {settings.seed}. Every model: width "
        f"{settings.width}, the same {settings.train_pairs:,} pairs,",
        f"{settings.updates} updates of {settings.sentences_per_update} sentences in the same "
        "order, Adam at a constant learning rate from the first update on.",
        "",
        *_columns(unigram_loss, rows),
        "",
        *_legend(settings, unigram_loss, rows),
        "",
        *_findings(unigram_loss, rows),
    ]
    return "\n".join(lines)


def _columns(unigram_loss: float, rows: Sequence[Row]) -> list[str]:
    cells = [
        (
            "model",
            "learning rate",
            "trained",
            "loss",
            "BLEU",
            "exact match",
            "seconds",
            "checkpoint",
        )
    ]
    for contender, result, folder in rows:
        if result.loss is None:
            trained, figures = f"diverged after {result.diverged_after}+ updates", ("-",) * 4
        else:
            trained = "yes" if is_trained(result, unigram_loss) else "no"
            figures = (
                f"{result.loss:.3f}",
                f"{result.bleu:.1f}",
                f"{result.exact_match:.1%}",
                f"{result.seconds:.0f}",
            )
        rate = f"{contender.learning_rate:g}"
        cells.append((contender.model.name, rate, trained, *figures, str(folder)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        words = [
            cell.ljust(width) if place in (0, 2, 7) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(words).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _legend(settings: Settings, unigram_loss: float, rows: Sequence[Row]) -> list[str]:
    signature = next((result.bleu_signature for _, result, _ in rows if result.bleu_signature), "")
    last = max(1, round(settings.updates * FINAL_PART))
    threshold = TRAINED_BELOW * unigram_loss
    lines = [
        f"loss         bits a target token, mean over the last {last} updates",
        f"trained      the loss is below {threshold:.2f}, {TRAINED_BELOW:.0%} of the "
        f"{unigram_loss:.2f} of a guess by how frequent each token is",
        f"exact match  of {settings.test_pairs} test numbers, none of them in the training part",
    ]
    if signature:
        lines.insert(2, f"BLEU         on characters, a German number being one word ({signature})")
    return lines


def _findings(unigram_loss: float, rows: Sequence[Row]) -> list[str]:
    """How hot a rate each model bears, as far as these rows tell."""
    lines = []
    for model in dict.fromkeys(contender.model.name for contender, _, _ in rows):
        of_model = [
            (contender.learning_rate, is_trained(result, unigram_loss))
            for contender, result, _ in rows
            if contender.model.name == model
        ]
        trained = sorted(rate for rate, well in of_model if well)
        failed = sorted(rate for rate, well in of_model if not well)
        parts = []
        if trained:
            parts.append("trained at " + _listed(trained))
        if failed:
            parts.append("did not train at " + _listed(failed))
        lines.append(f"{model} {', '.join(parts)}.")
    return lines


def _listed(rates: list[float]) -> str:
    texts = [f"{rate:g}" for rate in rates]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
