"""Lets PyTorch load fairseq checkpoints in its safe mode, which is the default since 2.6.

In safe mode a checkpoint can hold tensors, containers and the types listed here. Anything else is
refused by an error that names it, and nothing in the file is run.
"""

from argparse import Namespace
from typing import Any

import numpy as np
from torch.serialization import add_safe_globals

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
