"""fairseq's command lines, from options as a sweep's file has them."""

import sys
from collections.abc import Mapping
from pathlib import Path

import sigma_fairseq
from sigma_fairseq.sweep.settings import Options

USER_DIR = str(Path(sigma_fairseq.__file__).resolve().parent)


def fairseq_command(tool: str, data: Path, options: Options) -> list[str]:
    """The command line of a fairseq tool (`train`, `generate`, ...), run with this plugin."""
    return [sys.executable, "-m", f"fairseq_cli.{tool}", *fairseq_arguments(data, options)]


def fairseq_arguments(data: Path, options: Options) -> list[str]:
    """What follows the tool's name.

    Args:
        data: what fairseq-preprocess wrote.
        options: option without dashes → value; True for a flag, False for one to leave out.
    """
    defaults: Mapping[str, str | int] = {
        "user-dir": USER_DIR,
        # At fairseq's default of 8 up to 7 sentences of a subset are left out without a word.
        "required-batch-size-multiple": 1,
        # A process to load batches is one too many where each training has one core.
        **({"num-workers": 0} if options.get("cpu") else {}),
    }
    arguments = [str(data)]
    for option, value in {**defaults, **options}.items():
        if value is True:
            arguments.append(f"--{option}")
        elif value is not False:
            # In one word, so that a value may begin with a dash.
            arguments.append(f"--{option}={value}")
    return arguments
