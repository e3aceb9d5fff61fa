"""Lets PyTorch load fairseq checkpoints in its safe mode, which is the default since 2.6.

In safe mode a checkpoint can hold tensors, containers and the types listed here. Anything else is
refused by an error that names it, and nothing in the file is run. That leaves the options in it,
some of which fairseq evaluates.
"""

import re
from argparse import Namespace
from typing import Any

import numpy as np
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from torch.serialization import add_safe_globals

from sigma_fairseq.expressions import calls_something

#: What fairseq's checkpoints hold beyond tensors: options of components without a config
#: dataclass, and the n-gram counts that `--eval-bleu` leaves in the meters.
SAFE_GLOBALS: list[Any] = [
    Namespace,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.int64, np.float32, np.float64)),
    # The functions that rebuild an array and a scalar; their module differs between NumPy 1 and 2.
    np.zeros(0).__reduce__()[0],
    np.float64(0).__reduce__()[0],
]

add_safe_globals(SAFE_GLOBALS)


def read_checkpoint(path: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Reads a file that fairseq saved, upgraded to what fairseq saves now.

    Args:
        path: of the file.
        overrides: options to take instead of those in it.

    Raises:
        ValueError: one line why it is none, or is refused: it would run code.
    """
    try:
        state: dict[str, Any] = checkpoint_utils.load_checkpoint_to_cpu(path, overrides)
        config: Any = OmegaConf.to_container(state["cfg"], enum_to_str=True)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of fairseq") from error
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint to read: {_reason(error)}") from error
    for section, content in config.items():
        options = vars(content) if isinstance(content, Namespace) else content
        for name, value in options.items() if isinstance(options, dict) else ():
            if calls_something(value):
                raise ValueError(
                    f"{path} is not a checkpoint to read: its option {section}.{name} would run "
                    f"code: {value!r}"
                )
    return state


def _reason(error: Exception) -> str:
    """PyTorch's, without its advice to turn the safe mode off or to allow the type."""
    found = re.search(r"[Uu]nsupported .*?(?=\. |\.?\n|$)", str(error))
    return found[0] if found else str(error).strip().rpartition("\n")[2]
