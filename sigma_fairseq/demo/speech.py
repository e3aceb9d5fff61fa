"""The speech demo: a synthesised speaker's letters, by CTC with LARS and without warmup."""

from pathlib import Path
from typing import Any

from sigma_fairseq.demo.data_folder import load_record
from sigma_fairseq.demo.run import Demo
from sigma_fairseq.demo.settings import LARS_RATE, SpeechSettings
from sigma_fairseq.demo.speech_corpus import data_settings, write_speech
from sigma_fairseq.sweep.processes import Job

#: Features that a second of audio has.
FRAMES_PER_SECOND = 100


class SpeechDemo(Demo):
    """A `run.Demo` with LARS, as in Appendix E.

    Args:
        settings: what to train, and on what.
    """

    needed: tuple[str, ...] = ("fairseq", "matplotlib", "soundfile", "torchaudio", "editdistance")
    preparing = "synthesising speech: tones, no human voice"

    def __init__(self, settings: SpeechSettings) -> None:
        self.settings = settings
        self.name = f"speech-seed{settings.seed}"

    def has_data(self, folder: Path) -> bool:
        """Whether the folder has the utterances of these settings."""
        return load_record(folder, data_settings(self.settings)) is not None

    def make_data(self, folder: Path) -> Job:
        """Writes audio and manifests; it takes no command."""
        write_speech(folder, self.settings)
        yield from ()

    def sweep(self, data: Path) -> dict[str, Any]:
        """The sweep over the methods."""
        settings = self.settings
        frames = FRAMES_PER_SECOND * settings.seconds_per_update
        options = {
            "task": "ctc_speech",
            "encoder-layers": settings.layers,
            "encoder-embed-dim": settings.width,
            "encoder-ffn-embed-dim": settings.feed_forward,
            "encoder-attention-heads": settings.heads,
            # So few updates leave no time to overfit.
            "dropout-input": 0,
            "attention-dropout": 0,
            "activation-dropout": 0,
            "encoder-layerdrop": 0,
            "criterion": "monitored_ctc",
            "zero-infinity": True,
            "optimizer": "lars",
            "trust-coefficient": 0.02,
            "clip-norm": 1,
            "lr-scheduler": "polynomial_decay",
            "total-num-update": settings.updates,
            "max-update": settings.updates,
            "max-tokens": frames,
            "cpu": True,
            # One checkpoint at the end of each epoch, which fairseq moves into place when it is
            # complete; with validation there would be a second one, copied over the first.
            "no-epoch-checkpoints": True,
            "disable-validation": True,
        }
        return {
            "data": data.name,
            "options": options,
            "methods": settings.methods,
            "grid": {"lr": [LARS_RATE]},
            "seeds": [settings.seed],
            "evaluate": {"score": "wer", "options": {"max-tokens": 4 * frames}},
        }

    def heading(self, data: Path) -> str:
        """What was trained, in three lines."""
        settings = self.settings
        return (
            f"English number words spelled in tones by a synthesised speaker (no human voice), "
            f"seed {settings.seed}.\n"
            f"Every model: {settings.layers} layers of width {settings.width}, the same "
            f"{settings.train_utterances:,} utterances, {settings.updates} updates of up to "
            f"{settings.seconds_per_update} seconds\n"
            "of audio in the same order, LARS at a learning rate that falls from the first update "
            "on to 0."
        )
