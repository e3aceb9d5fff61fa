"""The language-model demo: Python's help texts, by Nesterov SGD, with and without LayerNorm."""

import re
import textwrap
from pathlib import Path
from typing import Any

from sigma_fairseq.demo.bpe import MODEL
from sigma_fairseq.demo.language_model_corpus import build_corpus, load_corpus
from sigma_fairseq.demo.run import Demo
from sigma_fairseq.demo.settings import LanguageModelSettings
from sigma_fairseq.sweep.commands import fairseq_command
from sigma_fairseq.sweep.processes import Command, Job, SweepError
from sigma_fairseq.sweep.settings import Options, Sweep

#: What the sampled paragraph begins with.
PROMPT = "The"
#: Each piece is drawn from the likeliest ones that together have this probability.
TOP_P = 0.5

COLUMNS, INDENT = 80, "    "

SAMPLE = "sample.log"
_TEXT = re.compile(r"^D-0\t[^\t]*\t(.*)\n", re.MULTILINE)


class LanguageModelDemo(Demo):
    """A `run.Demo` with Nesterov SGD, as in Appendix G, and a text that the first model writes.

    Args:
        settings: what to train, and on what.
    """

    needed: tuple[str, ...] = ("fairseq", "matplotlib", "pydoc_data", "sentencepiece")
    preparing = "splitting Python's help texts, learning BPE, fairseq-preprocess"

    def __init__(self, settings: LanguageModelSettings) -> None:
        self.settings = settings
        self.name = f"lm-seed{settings.seed}"

    def has_data(self, folder: Path) -> bool:
        """Whether the folder has the corpus of these settings."""
        return load_corpus(folder, self.settings) is not None

    def make_data(self, folder: Path) -> Job:
        """Writes text, cuts it and has fairseq binarise it."""
        return build_corpus(folder, self.settings)

    def sweep(self, data: Path) -> dict[str, Any]:
        """The sweep over the methods."""
        settings = self.settings
        options = {
            "task": "language_modeling",
            "tokens-per-sample": settings.block,
            "decoder-layers": settings.layers,
            "decoder-embed-dim": settings.width,
            "decoder-ffn-embed-dim": settings.feed_forward,
            "decoder-attention-heads": settings.heads,
            "adaptive-input-cutoff": settings.cutoffs,
            "adaptive-softmax-cutoff": settings.cutoffs,
            # So few updates leave no time to overfit.
            "dropout": 0,
            "attention-dropout": 0,
            "activation-dropout": 0,
            "adaptive-softmax-dropout": 0,
            "criterion": "monitored_adaptive_loss",
            "ddp-backend": "legacy_ddp",
            "optimizer": "nag",
            "momentum": 0.9,
            "clip-norm": 0.1,
            "lr-scheduler": "cosine",
            "max-update": settings.updates,
            "max-tokens": settings.tokens_per_update,
            "cpu": True,
            # One checkpoint at the end of each epoch, which fairseq moves into place when it is
            # complete; with validation there would be a second one, copied over the first.
            "no-epoch-checkpoints": True,
            "disable-validation": True,
        }
        return {
            "data": f"{data.name}/binary",
            "options": options,
            "methods": settings.methods,
            "grid": {"lr": [1]},
            "seeds": [settings.seed],
            "evaluate": {"score": "perplexity", "options": {"context-window": settings.block // 2}},
        }

    def heading(self, data: Path) -> str:
        """What was trained, in five lines."""
        settings = self.settings
        corpus = load_corpus(data, settings)
        assert corpus is not None
        return (
            f"Python's help texts, {corpus.words:,} words to train on in {corpus.pieces:,} pieces, "
            f"seed {settings.seed}. Every model:\n"
            f"{settings.layers} layers of width {settings.width}, {settings.updates} updates of "
            f"{settings.tokens_per_update} pieces in the same order, Nesterov SGD without warmup\n"
            "and with a rate that falls to 0, chosen for each model in shorter runs of seed 1.\n"
            f"Who knows how frequent each piece is, and nothing else, has a loss of "
            f"{corpus.unigram_loss:.2f}.\n"
            f"ppl: a piece's perplexity by fairseq-eval-lm, given the {settings.block // 2} to "
            f"{settings.block - 1} pieces before it."
        )

    def after(self, data: Path, sweep: Sweep) -> Job:
        """Has the first model write a paragraph."""
        if _sampled(sweep) is not None:
            return
        folder = _sampled_folder(sweep)
        prompt = folder / "prompt.txt"
        prompt.write_text(f"{PROMPT}\n", encoding="utf-8")
        options: Options = {
            "task": "language_modeling",
            "path": str(folder / "checkpoint_last.pt"),
            "cpu": True,
            "input": str(prompt),
            "bpe": "sentencepiece",
            "sentencepiece-model": str(data / MODEL),
            "seed": self.settings.seed,
            "sampling": True,
            "sampling-topp": TOP_P,
            "beam": 1,
            # What it writes is as long as what it was trained on at most.
            "min-len": self.settings.block // 2,
            "max-len-b": self.settings.block - 1,
        }
        arguments = fairseq_command("interactive", data / "binary", options)
        yield Command("sampling", arguments, folder / SAMPLE)

    def footing(self, data: Path, sweep: Sweep) -> str:
        """The paragraph, and how it came about."""
        text = _sampled(sweep)
        if text is None:
            raise SweepError(f"{_sampled_folder(sweep) / SAMPLE} has no text")
        return (
            f'What the {sweep.points[0].method} model writes after "{PROMPT}" (fairseq-interactive '
            f"--sampling\n--sampling-topp {TOP_P} --seed {self.settings.seed}):\n\n"
            + textwrap.fill(text, COLUMNS, initial_indent=INDENT, subsequent_indent=INDENT)
        )


def _sampled_folder(sweep: Sweep) -> Path:
    """Of the training whose model writes: what it has written goes when it is trained anew."""
    return sweep.out / sweep.points[0].name


def _sampled(sweep: Sweep) -> str | None:
    """What the model has written, or None if it has not."""
    log = _sampled_folder(sweep) / SAMPLE
    found = _TEXT.search(log.read_text(encoding="utf-8")) if log.is_file() else None
    return found and found[1]
