"""Entropy against a brute force in float64, its bound against the theorem's own extreme case."""

import math

import pytest
import torch
from torch import Tensor

from sigma_fairseq.monitor import entropy as module
from sigma_fairseq.monitor.entropy import (
    attention_entropy,
    entropy_lower_bound,
    spectral_norm_from_above,
    visible_keys,
)

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 5, 7, 4
HIDDEN = -torch.inf


def brute_force(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Σ over the keys one by one, in Python floats."""
    result = torch.empty(BATCH, HEADS, QUERIES, dtype=torch.float64)
    added = torch.zeros(BATCH, HEADS, QUERIES, KEYS)
    if mask is not None:
        additive = torch.where(mask, 0.0, HIDDEN) if mask.dtype == torch.bool else mask
        added = added + additive
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(QUERIES):
                logits = [
                    scale * float(query[b, h, i].double() @ key[b, h, j].double())
                    + float(added[b, h, i, j])
                    for j in range(KEYS)
                ]
                top = max(logits)
                weights = [math.exp(a - top) for a in logits]
                shares = [w / sum(weights) for w in weights]
                result[b, h, i] = -sum(p * math.log(p) for p in shares if p > 0)
    return result


def masks() -> dict[str, Tensor | None]:
    causal = torch.full((QUERIES, KEYS), HIDDEN).triu(1)[None, None]
    padding = torch.zeros(BATCH, 1, 1, KEYS)
    padding[1, ..., 4:] = HIDDEN
    return {
        "none": None,
        "causal": causal,
        "padding": padding,
        "both": causal + padding,
        "boolean": padding == 0,
        "finite": torch.randn(1, HEADS, QUERIES, KEYS),
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_entropy_equals_brute_force(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query = torch.randn(BATCH, HEADS, QUERIES, WIDTH).to(dtype) * 3
    key = torch.randn(BATCH, HEADS, KEYS, WIDTH).to(dtype)
    mask = masks()[name]
    found = attention_entropy(query, key, mask, 0.7)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        found.double(), brute_force(query, key, mask, 0.7), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", masks())
def test_blocks_of_queries_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(BATCH, HEADS, QUERIES, WIDTH), torch.randn(BATCH, HEADS, KEYS, WIDTH)
    mask = masks()[name]
    whole = attention_entropy(query, key, mask, 1.0)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 2 * BATCH * HEADS * KEYS)
    torch.testing.assert_close(attention_entropy(query, key, mask, 1.0), whole)


def test_memory_is_linear_in_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """No softmax is ever taken of more elements than a block has."""
    sizes = []
    softmax = torch.Tensor.softmax

    def counted(self: Tensor, *args: int) -> Tensor:
        sizes.append(self.numel())
        return softmax(self, *args)

    monkeypatch.setattr(torch.Tensor, "softmax", counted)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 4096)
    attention_entropy(torch.randn(1, 1, 512, 4), torch.randn(1, 1, 512, 4), None, 1.0)
    assert len(sizes) == 64
    assert max(sizes) == 4096


def test_a_collapsed_head_and_a_uniform_one() -> None:
    key = torch.eye(4)
    assert attention_entropy(key * 1e4, key, None, 1.0).abs().max() == 0
    uniform = attention_entropy(torch.zeros(1, 4), key, None, 1.0)
    assert uniform.item() == pytest.approx(math.log(4))


def test_a_query_that_sees_no_key_has_no_entropy() -> None:
    mask = torch.tensor([[0.0, 0.0], [HIDDEN, HIDDEN]])
    found = attention_entropy(torch.randn(2, 3), torch.randn(2, 3), mask, 1.0)
    assert found.isnan().tolist() == [False, True]
    assert visible_keys(mask, 2, found).tolist() == [2, 0]


@pytest.mark.parametrize("keys", [2, 3, 10, 500])
@pytest.mark.parametrize("norm", [0.0, 0.3, 2.0, 9.0])
def test_bound_is_reached_by_the_theorems_logits(keys: int, norm: float) -> None:
    logits = torch.full((keys,), -norm / math.sqrt(keys * (keys - 1)), dtype=torch.float64)
    logits[0] = norm * math.sqrt((keys - 1) / keys)
    assert logits.sum().item() == pytest.approx(0, abs=1e-9)
    assert logits.norm().item() == pytest.approx(norm)
    reached = torch.distributions.Categorical(logits=logits).entropy().item()
    exact = torch.tensor([norm, keys], dtype=torch.float64)
    bound = entropy_lower_bound(*exact)
    assert bound.item() == pytest.approx(reached, rel=1e-9)


def test_bound_holds_for_random_logits() -> None:
    torch.manual_seed(1)
    logits = torch.randn(1000, 6, dtype=torch.float64) * torch.rand(1000, 1) * 5
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    bound = entropy_lower_bound(logits.norm(dim=1), torch.tensor(6.0).double())
    assert (bound <= entropy + 1e-12).all()
    assert (bound < entropy - 0.01).any()


@pytest.mark.parametrize("norm", [0.0, 1.0, 1e4, 1e30])
def test_bound_of_one_key_and_of_huge_logits_is_zero(norm: float) -> None:
    bound = entropy_lower_bound(torch.tensor([norm]), torch.tensor([1.0]))
    assert bound.item() == 0
    huge = entropy_lower_bound(torch.tensor([max(norm, 1e4)]), torch.tensor([20.0]))
    assert huge.item() == 0


@pytest.mark.parametrize(
    "matrix",
    [
        torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0)),
        torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(1)) * 1e6,
        torch.randn(40, 40, generator=torch.Generator().manual_seed(2)) * 1e-8 + 1e-8,
        torch.eye(8),
    ],
)
def test_upper_bound_of_the_spectral_norm(matrix: Tensor) -> None:
    exact = torch.linalg.matrix_norm(matrix.double(), 2)
    found = spectral_norm_from_above(matrix).double()
    assert (found >= exact * (1 - 1e-5)).all()
    assert (found <= exact * 1.04).all()


def test_upper_bound_of_nothing_is_zero() -> None:
    assert spectral_norm_from_above(torch.zeros(2, 3, 5)).tolist() == [0, 0]
