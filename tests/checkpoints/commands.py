"""fairseq's commands inside a process; as a program, without the plugin.

The program reads a JSON list of commands, each a list of a name and arguments, and writes a list of
what they return.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch import Tensor

PARSERS = {
    "train": options.get_training_parser,
    "generate": options.get_generation_parser,
    "eval_lm": options.get_eval_lm_parser,
    "validate": options.get_validation_parser,
}
TRAINING = (
    *("--cpu", "--num-workers", "0", "--no-progress-bar", "--no-epoch-checkpoints"),
    *("--required-batch-size-multiple", "1", "--dropout", "0", "--batch-size", "32"),
)
TRANSLATION = (
    *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32"),
    *("--encoder-attention-heads", "4", "--decoder-attention-heads", "4"),
    *("--encoder-layers", "2", "--decoder-layers", "1"),
)
LANGUAGE_MODEL = (
    *("--task", "language_modeling", "--tokens-per-sample", "16", "--ddp-backend", "legacy_ddp"),
    *("--decoder-layers", "2", "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32"),
    *("--decoder-attention-heads", "4", "--adaptive-input", "--tie-adaptive-weights"),
    *("--tie-adaptive-proj", "--adaptive-input-cutoff", "4,8", "--no-decoder-final-norm"),
    *("--adaptive-softmax-cutoff", "4,8", "--attention-dropout", "0", "--activation-dropout", "0"),
    *("--adaptive-softmax-dropout", "0"),
)


def run(command: str, *args: str) -> Any:
    """Runs a fairseq command and returns what its main function does."""
    parsed = options.parse_args_and_arch(PARSERS[command](), list(args))
    main = importlib.import_module(f"fairseq_cli.{command}").main
    return main(convert_namespace_to_omegaconf(parsed))


def train(data: Path, save_dir: Path, *args: str) -> Path:
    """Trains a small model and returns its checkpoint."""
    run("train", str(data), "--save-dir", str(save_dir), *TRAINING, *args)
    return save_dir / "checkpoint_last.pt"


def hypotheses(results: Path) -> list[str]:
    """The H and D lines that fairseq-generate has written with --results-path."""
    lines = (results / "generate-test.txt").read_text().splitlines()
    return sorted(line for line in lines if line.startswith(("H-", "D-")))


if __name__ == "__main__":
    returned = [run(*command) for command in json.load(sys.stdin)]
    assert "sigma_fairseq" not in sys.modules
    print(
        json.dumps(
            returned, default=lambda value: value.item() if isinstance(value, Tensor) else None
        )
    )
