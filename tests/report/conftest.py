"""Runs that no training made, in the form in which monitors leave them in a save directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_MATRICES = ("query", "key", "value", "output", "fc1", "fc2")
_KINDS = ("encoder self", "decoder self", "encoder-decoder")
_MODULES = {
    "encoder self": "encoder.layers.{}.self_attn",
    "decoder self": "decoder.layers.{}.self_attn",
    "encoder-decoder": "decoder.layers.{}.encoder_attn",
}


def _header(layers: int, heads: int, **options: Any) -> dict[str, Any]:
    """The monitor.json of a translation model."""
    attentions = [
        {"name": _MODULES[kind].format(layer), "kind": kind, "layer": layer, "heads": heads}
        for kind in _KINDS
        for layer in range(layers)
    ]
    matrices = [
        {
            "name": f"{one['name']}.{kind}",
            "kind": kind,
            "stack": str(one["name"]).partition(".")[0],
            "layer": one["layer"],
        }
        for one in attentions
        for kind in _MATRICES[: 4 if one["kind"] == "decoder self" else 6]
    ]
    optimization = {"max_update": 1000, "lr": [options.pop("lr", 0.003)], "clip_norm": 0.0}
    return {
        "format": 1,
        "architecture": options.pop("architecture", f"transformer_reparam_deepnorm_{layers}l"),
        "options": {
            "common": {"seed": 1, "fp16": False},
            "model": {"_name": "m", "encoder_layers": layers, **options},
            "optimization": optimization,
            "lr_scheduler": {"_name": "fixed", "lr": optimization["lr"]},
            "bpe": None,
        },
        "attentions": attentions,
        "matrices": matrices,
        "embeddings": ["encoder.embed_tokens"],
    }


def _record_type(head: dict[str, Any]) -> np.dtype[Any]:
    count = [len(head[group]) for group in ("attentions", "matrices", "embeddings")]
    heads = max((one["heads"] for one in head["attentions"]), default=0)
    by_head = ("entropy", "entropy_min", "entropy_bound", "key_query_norm")
    by_matrix = ("spectral_norm", "gamma", "sigma_error", "gradient_norm", "update_ratio")
    return np.dtype(
        [
            *(("update", "<i8"), ("seconds", "<f8"), ("learning_rate", "<f4"), ("loss", "<f4")),
            *((name, "<f4", (count[0], heads)) for name in by_head),
            ("entropy_max", "<f4", (count[0],)),
            *((name, "<f4", (count[1],)) for name in by_matrix),
            ("embedding_variability", "<f4", (count[2],)),
        ]
    )


def _healthy(head: dict[str, Any], updates: int, interval: int = 10, seed: int = 0) -> np.ndarray:
    """Records of a loss that falls and of an entropy that settles well above 0."""
    draw = np.random.default_rng(seed)
    number = len(range(interval, updates + 1, interval))
    records = np.zeros(number, _record_type(head))
    records["update"] = interval * np.arange(1, number + 1)
    progress = np.linspace(0, 1, number)
    records["seconds"] = 1.7e9 + records["update"]
    records["learning_rate"] = 3e-3

    def noisy(middle: np.ndarray, field: str, scale: float = 0.05) -> np.ndarray:
        shape = records[field].shape
        spread = np.exp(0.3 * draw.standard_normal((1, *shape[1:])))
        middle = middle.reshape(-1, *(1,) * (len(shape) - 1))
        return middle * spread * np.exp(scale * draw.standard_normal(shape))

    records["loss"] = noisy(0.05 + 5.4 * np.exp(-6 * progress), "loss")
    records["entropy_max"] = np.log(25)
    records["entropy"] = np.minimum(noisy(1.2 + 1.4 * np.exp(-5 * progress), "entropy"), 3.2)
    records["entropy_min"] = records["entropy"] * 0.6
    records["entropy_bound"] = noisy(1.5 * np.exp(-8 * progress), "entropy_bound")
    records["entropy_bound"] = np.minimum(records["entropy_bound"], records["entropy_min"])
    records["key_query_norm"] = noisy(1 + 6 * progress, "key_query_norm")
    records["spectral_norm"] = noisy(1 + 2 * progress, "spectral_norm", 0.01)
    records["gamma"] = records["spectral_norm"]
    records["sigma_error"] = np.nan
    records["gradient_norm"] = noisy(0.01 + 0.05 * np.exp(-4 * progress), "gradient_norm", 0.3)
    records["update_ratio"] = noisy(1e-3 + 5e-3 * np.exp(-9 * progress), "update_ratio", 0.2)
    records["embedding_variability"] = noisy(0.1 + 0.1 * progress, "embedding_variability", 0.01)
    return records


def _collapsing(
    head: dict[str, Any], updates: int, interval: int = 10, seed: int = 1
) -> np.ndarray:
    """From the middle on the deeper half's attention falls to 0, then the loss grows to NaN."""
    records = _healthy(head, updates, interval, seed)
    number = len(records)
    progress = np.linspace(0, 1, number)
    fall = 1 / (1 + np.exp(60 * (progress - 0.5)))
    depth = max(one["layer"] for one in head["attentions"])
    for index, attention in enumerate(head["attentions"]):
        if attention["layer"] > depth / 2:
            for field in ("entropy", "entropy_min"):
                records[field][:, index] *= fall[:, None]
    records["entropy_bound"] = 0
    records["key_query_norm"] *= (1 / np.maximum(fall, 1e-3))[:, None, None]
    records["gradient_norm"] *= (1 + 1e3 * (1 - fall) ** 4)[:, None]
    records["loss"] += np.where(progress > 0.6, 40 * (progress - 0.6), 0)
    records["loss"][progress > 0.9] = np.nan
    records["entropy"][progress > 0.95] = np.nan
    records["gamma"] = np.nan
    return records


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run(name, collapses=False, layers=3, heads=2, updates=200, **options) → its folder."""

    def make(
        name: str,
        collapses: bool = False,
        layers: int = 3,
        heads: int = 2,
        updates: int = 200,
        **options: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        head = _header(layers, heads, **options)
        (folder / "monitor.json").write_text(json.dumps(head))
        records = (_collapsing if collapses else _healthy)(head, updates)
        np.save(folder / "monitor.npy", records)
        return folder

    return make
