"""The loss of guessing by frequency, against values known in closed form."""

import math

import pytest

from sigma_fairseq.demo.translation_corpus import unigram_loss


def test_equally_frequent_tokens_cost_the_logarithm_of_their_number() -> None:
    # Three tokens and the end of the sentence: four, each once.
    assert unigram_loss([["a", "b", "c"]]) == pytest.approx(2.0)


def test_a_token_that_is_always_there_costs_nothing() -> None:
    assert unigram_loss([[], [], []]) == 0.0


def test_rare_tokens_count_by_how_rare_they_are() -> None:
    # 2 of a, 1 of b, 1 end.
    expected = 0.5 * 1 + 2 * 0.25 * 2
    assert unigram_loss([["a", "b", "a"]]) == pytest.approx(expected)
    skewed = unigram_loss([["a"] * 97 + ["b"] * 2])
    assert skewed == pytest.approx(-sum(p * math.log2(p) for p in (0.97, 0.02, 0.01)))
