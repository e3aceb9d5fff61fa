"""The task `ctc_speech`: from a data folder of speech to batches, and from a model to words."""

import logging
import math
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from fairseq.data import ConcatDataset
from fairseq.data.audio.data_cfg import S2TDataConfig
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.logging import metrics
from fairseq.tasks import LegacyFairseqTask, register_task
from fairseq.tasks.speech_to_text import SpeechToTextTask
from omegaconf import II

from sigma_fairseq.speech import decoding
from sigma_fairseq.speech.dictionary import BLANK, LetterDictionary
from sigma_fairseq.speech.transforms import UtteranceNorm as UtteranceNorm

logger = logging.getLogger(__name__)


class Letters:
    """Words as letters and back, where fairseq has a byte-pair encoding."""

    def __init__(self, dictionary: LetterDictionary) -> None:
        self._dictionary = dictionary

    def encode(self, text: str) -> str:
        """`the cat` → `t h e | c a t`."""
        letters: str = self._dictionary.string(self._dictionary.labels(text))
        return letters

    def decode(self, letters: str) -> str:
        """`t h e | c a t` → `the cat`."""
        return self._dictionary.words(letters)


@dataclass
class CtcSpeechConfig(decoding.DecoderConfig):
    """The task's options, and the decoder's."""

    data: str = field(
        default="",
        metadata={
            "help": "folder of config.yaml, dict.txt and a manifest SPLIT.tsv for each split. "
            "--max-tokens counts 10 ms frames, padding included: 24000 are 240 s of audio"
        },
    )
    config_yaml: str = field(default="config.yaml", metadata={"help": "its name in that folder"})
    max_source_positions: int = field(
        default=6000, metadata={"help": "leave out utterances of more 10 ms frames than this"}
    )
    strict: bool = field(
        default=False,
        metadata={
            "help": "read all audio first, by --num-workers, and end with an error if any "
            "utterance is too long, too short for its transcript, mislabelled, missing, corrupt or "
            "silent; without it, such utterances are left out and named in the log"
        },
    )
    train_subset: str = II("dataset.train_subset")
    max_tokens: Optional[int] = II("dataset.max_tokens")  # noqa: UP045 (see DecoderConfig)
    max_tokens_valid: Optional[int] = II("dataset.max_tokens_valid")  # noqa: UP045
    num_workers: int = II("dataset.num_workers")
    seed: int = II("common.seed")


@register_task("ctc_speech", dataclass=CtcSpeechConfig)
class CtcSpeechTask(SpeechToTextTask):
    """fairseq's speech to text, for CTC over letters.

    Errors in the data end the program with one line and exit status 1.
    """

    blank_symbol = BLANK

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """The options of `CtcSpeechConfig`, where SpeechToTextTask has its own."""
        gen_parser_from_dataclass(parser, CtcSpeechConfig())
        # fairseq's 8 loses up to seven utterances of a split without a word.
        parser.set_defaults(required_batch_size_multiple=1)

    @classmethod
    def setup_task(cls, cfg: CtcSpeechConfig, **kwargs: Any) -> "CtcSpeechTask":
        """Reads the data folder's config and dictionary."""
        folder = Path(cfg.data)
        with _one_line_errors():
            data_cfg = _read_config(folder / cfg.config_yaml)
            dictionary = LetterDictionary.read(folder / data_cfg.vocab_filename)
            if not all(split.startswith("train") for split in cfg.train_subset.split(",")):
                raise ValueError(
                    f"--train-subset {cfg.train_subset}: names of training splits are train*"
                )
        return cls(cfg, dictionary)

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        """Reads the manifest of a split, or of several between commas."""
        with _one_line_errors():
            datasets = [self._load(name) for name in split.split(",")]
        self.datasets[split] = datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)

    def _load(self, split: str) -> Any:
        from sigma_fairseq.speech.checks import NAMED, describe
        from sigma_fairseq.speech.dataset import audio_faults, load_split

        dataset, faults = load_split(
            Path(self.args.data),
            split,
            self.data_cfg,
            self.tgt_dict,
            self._max_frames(split),
            self.args.seed,
        )
        total = len(dataset) + len(faults)
        if self.args.strict:
            faults += audio_faults(dataset, self.args.num_workers)
        share = f"{len(faults):,} of {total:,}"
        if faults and self.args.strict:
            raise ValueError(f"{split}: cannot use {share}: {describe(faults)}")
        if faults:
            # Scores are without the utterances that a test set is without: all are named.
            named = NAMED if split.startswith("train") else None
            logger.warning("%s: left out %s: %s", split, share, describe(faults, named))
        return dataset

    def _max_frames(self, split: str) -> int:
        cfg = self.args
        budget = cfg.max_tokens if split.startswith("train") else cfg.max_tokens_valid
        return min(limit for limit in (cfg.max_source_positions, budget) if limit is not None)

    def max_positions(self) -> int:
        """Frames of the longest utterance."""
        longest: int = self.args.max_source_positions
        return longest

    def build_model(self, args: Any, from_checkpoint: bool = False) -> Any:
        """As fairseq's other tasks; a model finds the number of features in `data_cfg`."""
        # SpeechToTextTask writes it into a model's options, which may have no such name.
        return LegacyFairseqTask.build_model(self, args, from_checkpoint)

    def train_step(
        self,
        sample: Any,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Any, Any, Any]:
        """As fairseq's; a batch in which no utterance could be used has neither loss nor weight."""
        ignore_grad = ignore_grad or not sample["nsentences"]
        result = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        return _weighed(sample, *result)

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> tuple[Any, Any, Any]:
        """As fairseq's; a batch in which no utterance could be used counts for nothing."""
        return _weighed(sample, *super().valid_step(sample, model, criterion))

    def reduce_metrics(self, logging_outputs: Any, criterion: Any) -> None:
        """As fairseq's, which divides by the number of labels, also if there are none."""
        if any(log["nsentences"] for log in logging_outputs):
            super().reduce_metrics(logging_outputs, criterion)
        else:
            metrics.log_scalar("loss", 0, weight=0)
            if any("w_total" in log for log in logging_outputs):
                # Should no utterance of the split be left, there is still a figure to compare.
                metrics.log_derived("wer", _wer)

    def build_generator(self, models: Any, args: Any, **kwargs: Any) -> Any:
        """The decoder of `--decoder`; see `sigma_fairseq.speech.decoding`."""
        with _one_line_errors():
            return decoding.build_decoder(self.args, args, self.tgt_dict)

    def build_bpe(self, args: Any) -> Letters:
        """`fairseq-generate` shows words by its `decode`."""
        return Letters(self.tgt_dict)


def _wer(meters: Any) -> float:
    words = meters["_w_total"].sum if "_w_total" in meters else 0
    return 100 * float(meters["_w_errors"].sum) / float(words) if words else math.inf


def _weighed(sample: Any, loss: Any, sample_size: Any, log: Any) -> tuple[Any, Any, Any]:
    if sample["nsentences"]:
        return loss, sample_size, log
    return loss * 0, 0, {name: value * 0 for name, value in log.items()}


def _read_config(path: Path) -> S2TDataConfig:
    # Reading audio takes packages that a plugin without its speech extra has not got.
    from sigma_fairseq.speech.features import MEL_BINS, SAMPLE_RATE

    try:
        cfg = S2TDataConfig(path)
    except Exception as error:  # fairseq raises no narrower one for a file that is not YAML
        raise ValueError(" ".join(str(error).split())) from error
    if not isinstance(cfg.config, dict):
        raise ValueError(f"{path}: not a mapping of names to values")
    if cfg.input_feat_per_channel != MEL_BINS or cfg.sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"{path}: input_feat_per_channel must be {MEL_BINS} and sample_rate {SAMPLE_RATE}"
        )
    return cfg


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (ImportError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
