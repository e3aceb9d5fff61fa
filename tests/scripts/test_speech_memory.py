"""The script that reckons memory, against sizes written out."""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "speech_memory.py"


def reckon(*options: str) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--arch", "ctc_transformer_postln_36l", *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    sizes = re.findall(r"^(\w+)[a-z, ]+ +([\d.]+) GB$", result.stdout, re.M)
    return {first: float(size) for first, size in sizes}


def test_sizes_of_the_36_layer_model() -> None:
    found = reckon("--utterances", "4", "--seconds", "20")
    linears = 36 * (4 * 768 * 768 + 2 * 768 * 3072) + 768 * 29 + 29
    others = 36 * 4 * 768 + 80 * 7 * 1536 + 1536 + 2
    assert found["weights"] == round(12 * (linears + others) / 1e9, 1)
    assert abs(found["together"] - found["weights"] - found["kept"]) < 0.11
    # What is kept of a layer and frame, in values of fp32: its input, q, k, v, the context, two
    # inputs and outputs of LayerNorms, 768 each, and the FFN's 3072 after the ReLU and the dropout.
    # And of each layer the weights of q, k and v as one matrix.
    kept = 36 * (4 * 667 * 4 * (8 * 768 + 2.25 * 3072) + 4 * 3 * 768 * 768) / 1e9
    assert abs(found["kept"] / kept - 1) < 0.2
