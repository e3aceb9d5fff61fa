"""The translation demo: English number words to German ones, at a hot learning rate."""

from pathlib import Path
from typing import Any

from sigma_fairseq.demo.run import Demo
from sigma_fairseq.demo.settings import HOT, TranslationSettings
from sigma_fairseq.demo.translation_corpus import LANGUAGES, Corpus, build_corpus, load_corpus
from sigma_fairseq.sweep.processes import Job


class TranslationDemo(Demo):
    """A `run.Demo` with Adam.

    Args:
        settings: what to train, and on what.
    """

    needed: tuple[str, ...] = ("fairseq", "matplotlib", "sacrebleu", "sentencepiece")
    preparing = "writing number words, learning BPE, fairseq-preprocess"

    def __init__(self, settings: TranslationSettings) -> None:
        self.settings = settings
        self.name = f"seed{settings.seed}"

    def has_data(self, folder: Path) -> bool:
        """Whether the folder has the corpus of these settings."""
        return load_corpus(folder, self.settings) is not None

    def make_data(self, folder: Path) -> Job:
        """Writes text, cuts it and has fairseq binarise it."""
        return build_corpus(folder, self.settings)

    def sweep(self, data: Path) -> dict[str, Any]:
        """The sweep over the methods."""
        settings = self.settings
        sizes = {}
        for stack in ("encoder", "decoder"):
            sizes[f"{stack}-embed-dim"] = settings.width
            sizes[f"{stack}-ffn-embed-dim"] = settings.feed_forward
            sizes[f"{stack}-attention-heads"] = settings.heads
        options = {
            "task": "translation",
            "source-lang": LANGUAGES[0],
            "target-lang": LANGUAGES[1],
            **sizes,
            "share-all-embeddings": True,
            "dropout": 0,
            "criterion": "monitored_label_smoothed_cross_entropy",
            "optimizer": "adam",
            "adam-betas": "(0.9, 0.98)",
            "lr-scheduler": "fixed",
            "batch-size": settings.sentences_per_update,
            "max-update": settings.updates,
            "cpu": True,
            # One checkpoint at the end of each epoch, which fairseq moves into place when it is
            # complete; with validation there would be a second one, copied over the first.
            "no-epoch-checkpoints": True,
            "disable-validation": True,
        }
        generation = {
            "beam": 1,
            "post-process": "sentencepiece",
            "batch-size": 250,
            # A model that has not learned when to stop need not go on for long.
            "max-len-a": 0,
            "max-len-b": 2 * self._corpus(data).longest_target,
        }
        return {
            "data": f"{data.name}/binary",
            "options": options,
            "methods": settings.methods,
            "grid": {"lr": [HOT]},
            "seeds": [settings.seed],
            # A German number is one word: BLEU is on characters.
            "evaluate": {"score": "bleu", "tokenize": "char", "options": generation},
        }

    def heading(self, data: Path) -> str:
        """What was trained, in three lines."""
        settings = self.settings
        return (
            f"English number words to German ones, seed {settings.seed}. Every model: width "
            f"{settings.width}, the same {settings.train_pairs:,} pairs,\n"
            f"{settings.updates} updates of {settings.sentences_per_update} sentences in the same "
            "order, Adam at a constant learning rate from the first update on.\n"
            f"Who knows how frequent each token is, and nothing else, has a loss of "
            f"{self._corpus(data).unigram_loss:.2f}."
        )

    def _corpus(self, data: Path) -> Corpus:
        corpus = load_corpus(data, self.settings)
        assert corpus is not None
        return corpus
