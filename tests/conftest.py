"""What several tests need: small fairseq models, and a small corpus that fairseq has binarised."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fairseq import models
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sigma_fairseq
from sigma_fairseq.speech.dictionary import LetterDictionary

NARROW = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
USER_DIR = str(Path(sigma_fairseq.__file__).parent)


def build_task(dictionary: Dictionary) -> SimpleNamespace:
    """The part of fairseq's text tasks that building a model reads."""
    args = SimpleNamespace(data=None)
    return SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, args=args)


@pytest.fixture(scope="session")
def task() -> SimpleNamespace:
    """A task of 20 words."""
    dictionary = Dictionary()
    for number in range(20):
        dictionary.add_symbol(f"w{number}")
    return build_task(dictionary)


@pytest.fixture(scope="session")
def build(task: SimpleNamespace) -> Callable[..., Any]:
    """build(architecture, **options) → a narrow model, as fairseq builds it from a config."""

    def build_model(architecture: str, **options: Any) -> Any:
        model = {"_name": architecture, **NARROW, **options}
        return models.build_model(OmegaConf.create({"model": model}).model, task)

    return build_model


class CountOperations(TorchDispatchMode):
    """The ATen operations dispatched inside it, by name, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self.names)


SpeechBuilder = Callable[..., Any]


@pytest.fixture(scope="session")
def letters() -> LetterDictionary:
    """The 29 labels of English speech."""
    dictionary = LetterDictionary()
    for symbol in "abcdefghijklmnopqrstuvwxyz'|":
        dictionary.add_symbol(symbol)
    return dictionary


@pytest.fixture(scope="session")
def build_speech(letters: LetterDictionary) -> SpeechBuilder:
    """build_speech(architecture, **options) → a narrow speech model, as fairseq builds it."""
    data_cfg = SimpleNamespace(input_feat_per_channel=80)
    task = SimpleNamespace(data_cfg=data_cfg, target_dictionary=letters)
    narrow = {key: value for key, value in NARROW.items() if key.startswith("encoder")}

    def build_model(architecture: str, **options: Any) -> Any:
        model = {"_name": architecture, **narrow, **options}
        cfg = OmegaConf.create({"model": model, "common": {"seed": 1}})
        return models.build_model(cfg.model, task)

    return build_model


@pytest.fixture(scope="session")
def build_lm(task: SimpleNamespace) -> Callable[..., Any]:
    """build_lm(architecture, of=task, **options) → a narrow language model, as fairseq does it."""
    narrow = {
        "decoder_embed_dim": 16,
        "decoder_ffn_embed_dim": 32,
        "decoder_attention_heads": 4,
        "adaptive_input_cutoff": "8,16",
        "adaptive_softmax_cutoff": "8,16",
    }

    def build_model(architecture: str, *, of: SimpleNamespace | None = None, **options: Any) -> Any:
        cfg = OmegaConf.create(
            {
                "model": {"_name": architecture, **narrow, **options},
                "task": {"tokens_per_sample": 12, "add_bos_token": False},
                "common": {"tpu": False},
            }
        )
        cfg.task.max_target_positions = None
        return models.build_model(cfg.model, of or task)

    return build_model


def run_fairseq(command: str, *args: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Runs a fairseq command (`train`, `generate`, ...) with the plugin, on one thread."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"fairseq_cli.{command}", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if check and result.returncode:
        raise AssertionError(f"fairseq-{command} failed:\n{result.stdout}\n{result.stderr}")
    return result


def train_on_two_workers(*args: str) -> None:
    """Runs fairseq-train on the CPU as two processes that share each update."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    distributed = (
        *("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"),
        *("--distributed-init-method", f"tcp://127.0.0.1:{port}", "--distributed-world-size", "2"),
        *("--distributed-no-spawn", "--distributed-rank"),
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "fairseq_cli.train", *args, *distributed, rank],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs


def up_to_signs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state without what a rounding decides: which way singular vectors point."""
    return {
        name: value.abs() if name.endswith((".u", ".v")) else value
        for name, value in state.items()
        if not name.endswith(".subspace")
    }


@pytest.fixture(scope="session")
def fairseq() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """See `run_fairseq`."""
    return run_fairseq


@pytest.fixture(scope="session")
def data_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A binarised corpus whose target is the source reversed: 300 / 40 / 20 pairs."""
    folder = tmp_path_factory.mktemp("reversed")
    draw = random.Random(0)
    for split, size in (("train", 300), ("valid", 40), ("test", 20)):
        sentences = [draw.choices("abcdefgh", k=draw.randint(2, 6)) for _ in range(size)]
        for language, lines in (("en", sentences), ("de", [s[::-1] for s in sentences])):
            text = "".join(" ".join(line) + "\n" for line in lines)
            (folder / f"{split}.{language}").write_text(text)
    run_fairseq(
        "preprocess",
        *("--source-lang", "en", "--target-lang", "de", "--joined-dictionary"),
        *("--trainpref", f"{folder}/train", "--validpref", f"{folder}/valid"),
        *("--testpref", f"{folder}/test", "--destdir", f"{folder}/bin"),
    )
    return folder / "bin"
