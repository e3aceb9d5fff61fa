"""One model of the demo: fairseq-train, fairseq-generate, and what came of them."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import sigma_fairseq
from sigma_fairseq.demo.corpus import LANGUAGES, Corpus, data_settings
from sigma_fairseq.demo.processes import Command, CommandFailedError, DemoError, Job
from sigma_fairseq.demo.settings import Contender, Settings

#: The loss of a training is its mean over this part of the updates, the last ones.
FINAL_PART = 1 / 8
LOGGED_POINTS = 40

_LOGGED = re.compile(r"\| train_inner \| (\{.*\})")
_TRANSLATION = re.compile(r"^D-(\d+)\t[^\t]*\t(.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a training.

    Attributes:
        updates: asked for, and made unless it diverged.
        loss: of the last updates, in bits a target token; None if it diverged.
        diverged_after: the last update logged before fairseq gave up on gradients that were not
            finite.
        bleu: corpus BLEU of the test part's translations, on characters.
        exact_match: share of the test part that is translated without an error.
        seconds: training time, those of earlier attempts that this one went on from included.
        bleu_signature: sacrebleu's account of how BLEU was computed.
    """

    updates: int
    loss: float | None = None
    diverged_after: int | None = None
    bleu: float = 0.0
    exact_match: float = 0.0
    seconds: float = 0.0
    bleu_signature: str = ""


class Training:
    """A contender in a folder, which holds checkpoint, logs, options and, at last, the result.

    Args:
        contender: what to train.
        settings: how.
        corpus: on what.
        folder: where.
    """

    def __init__(
        self, contender: Contender, settings: Settings, corpus: Corpus, folder: Path
    ) -> None:
        self.contender = contender
        self.folder = folder
        self.checkpoint = folder / "checkpoint_last.pt"
        self.log = folder / "train.log"
        self._settings = settings
        self._corpus = corpus

    def job(self) -> Job:
        """The commands that are still needed to have a result."""
        if self.result() is not None:
            return
        self._make_room()
        if self._updates_and_seconds()[0] < self._settings.updates:
            logged_before = len(self._log_text())
            try:
                yield self._train_command()
            except CommandFailedError:
                if "\nFloatingPointError: " not in self._log_text()[logged_before:]:
                    raise
                self._save(Result(self._settings.updates, diverged_after=self.progress()[0]))
                return
        yield self._generate_command()
        self._save(self._evaluate())

    def result(self) -> Result | None:
        """The result of exactly these settings, or None if there is none yet."""
        file = self.folder / "result.json"
        if not file.is_file() or self._recorded_options() != self._options():
            return None
        result = Result(**json.loads(file.read_text(encoding="utf-8")))
        if result.updates != self._settings.updates:
            return None
        if result.diverged_after is None:
            return result if self._updates_and_seconds()[0] == result.updates else None
        return result

    def progress(self) -> tuple[int, float | None]:
        """Updates made and the loss of the latest, from the log."""
        losses = self._logged_losses()
        return max(losses.items()) if losses else (0, None)

    def _options(self) -> dict[str, Any]:
        """All that the figures depend on but the number of updates, which can be raised later."""
        return {
            "data": data_settings(self._settings),
            "arguments": self._model_arguments() + self._optimization_arguments(),
        }

    def _recorded_options(self) -> dict[str, Any] | None:
        file = self.folder / "options.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def _make_room(self) -> None:
        """Leaves a folder that training can start in or, with the same options, go on in."""
        if self.folder.exists():
            recorded = self._recorded_options()
            if recorded is None:
                raise DemoError(f"{self.folder} is not of the demo's making: give another --out")
            too_far = self._updates_and_seconds()[0] > self._settings.updates
            if too_far or recorded != self._options():
                shutil.rmtree(self.folder)
        if not self.folder.exists():
            partial = self.folder.with_name(self.folder.name + ".partial")
            partial.mkdir(parents=True, exist_ok=True)
            _write_json(partial / "options.json", self._options())
            partial.rename(self.folder)
        (self.folder / "result.json").unlink(missing_ok=True)

    def _updates_and_seconds(self) -> tuple[int, float]:
        """Updates in the checkpoint and the time they took; 0 without a checkpoint."""
        if not self.checkpoint.is_file():
            return 0, 0.0
        from fairseq.checkpoint_utils import load_checkpoint_to_cpu

        try:
            state = load_checkpoint_to_cpu(str(self.checkpoint))
            updates = state["optimizer_history"][-1]["num_updates"]
            return updates, state["extra_state"]["previous_training_time"]
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise DemoError(
                f"cannot read {self.checkpoint} ({reason}): remove {self.folder} to train it again"
            ) from error

    def _model_arguments(self) -> list[str]:
        settings = self._settings
        arguments = ["--arch", self.contender.model.architecture, "--share-all-embeddings"]
        for stack in ("encoder", "decoder"):
            arguments += [f"--{stack}-embed-dim", str(settings.width)]
            arguments += [f"--{stack}-ffn-embed-dim", str(settings.feed_forward)]
            arguments += [f"--{stack}-attention-heads", str(settings.heads)]
        return [*arguments, "--dropout", "0", *self.contender.model.options]

    def _optimization_arguments(self) -> list[str]:
        return [
            *("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--criterion", "cross_entropy"),
            *("--lr", str(self.contender.learning_rate), "--lr-scheduler", "fixed"),
            *("--batch-size", str(self._settings.sentences_per_update)),
            *("--seed", str(self._settings.seed)),
        ]

    def _common_arguments(self, command: str) -> list[str]:
        return [
            *(sys.executable, "-m", f"fairseq_cli.{command}", str(self._corpus.binary)),
            *("--user-dir", str(Path(sigma_fairseq.__file__).resolve().parent)),
            *("--task", "translation"),
            *("--source-lang", LANGUAGES[0]),
            *("--target-lang", LANGUAGES[1]),
            *("--cpu", "--num-workers", "0", "--no-progress-bar"),
            # At fairseq's default of 8 up to 7 sentences of a part are left out without a word.
            *("--required-batch-size-multiple", "1"),
        ]

    def _train_command(self) -> Command:
        arguments = [
            *self._common_arguments("train"),
            *self._model_arguments(),
            *self._optimization_arguments(),
            *("--max-update", str(self._settings.updates)),
            # One checkpoint at the end of each epoch, which fairseq moves into place when it is
            # complete; with validation there would be a second one, copied over the first.
            *("--save-dir", str(self.folder), "--no-epoch-checkpoints", "--disable-validation"),
            *("--log-format", "json"),
            *("--log-interval", str(max(1, self._settings.updates // LOGGED_POINTS))),
        ]
        return Command(f"training {self.contender}", arguments, self.log, append=True)

    def _generate_command(self) -> Command:
        arguments = [
            *self._common_arguments("generate"),
            *("--path", str(self.checkpoint), "--gen-subset", "test", "--beam", "1"),
            *("--post-process", "sentencepiece", "--batch-size", "250"),
            # A model that has not learned when to stop need not go on for long.
            *("--max-len-a", "0", "--max-len-b", str(2 * self._corpus.longest_target)),
        ]
        return Command(f"translating with {self.contender}", arguments, self._translations)

    @property
    def _translations(self) -> Path:
        return self.folder / "generate.log"

    def _logged_losses(self) -> dict[int, float]:
        """Update → mean loss since the one logged before it. Of two attempts, the later counts."""
        points = [json.loads(point) for point in _LOGGED.findall(self._log_text())]
        return {int(point["num_updates"]): float(point["loss"]) for point in points}

    def _log_text(self) -> str:
        if not self.log.is_file():
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _evaluate(self) -> Result:
        from sacrebleu.metrics import BLEU

        references = self._corpus.references()
        found = _TRANSLATION.findall(self._translations.read_text(encoding="utf-8"))
        translations = {int(number): translation for number, translation in found}
        if len(translations) != len(references):
            raise DemoError(
                f"{len(translations)} of {len(references)} test sentences have a translation in "
                f"{self._translations}"
            )
        hypotheses = [translations[number] for number in range(len(references))]
        bleu = BLEU(tokenize="char")
        score = bleu.corpus_score(hypotheses, [references]).score
        matches = sum(map(str.__eq__, hypotheses, references))
        updates = self._settings.updates
        last = [
            loss
            for update, loss in self._logged_losses().items()
            if updates * (1 - FINAL_PART) < update <= updates
        ]
        if not last:
            raise DemoError(f"{self.log} has no loss of the last updates: remove {self.folder}")
        return Result(
            updates,
            loss=sum(last) / len(last),
            bleu=score,
            exact_match=matches / len(references),
            seconds=self._updates_and_seconds()[1],
            bleu_signature=str(bleu.get_signature()),
        )

    def _save(self, result: Result) -> None:
        _write_json(self.folder / "result.json", dataclasses.asdict(result))


def _write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes a file that is either not there or complete."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(file)
