"""Measures of sentence embeddings against SciPy, and by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_array, csr_matrix
from sklearn.metrics.pairwise import cosine_similarity

from dualcl_jax.evaluators.measures import sentences
from dualcl_jax.evaluators.measures.sentences import own_ranks, paired_cosines, rank_correlation, reciprocal_ranks


@pytest.mark.parametrize('form', [np.asarray, csr_matrix, csr_array])
def test_cosines_of_pairs(form):
    rng = np.random.default_rng(0)
    first, second = np.maximum(rng.normal(size=(2, 9, 5)), 0)
    first[3] = 0
    found = paired_cosines(form(first), form(second))
    np.testing.assert_allclose(found, np.diag(cosine_similarity(first, second)), atol=1e-12)


def test_rank_correlation_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(6, size=200).astype(float)
    similarities = scores + 2 * rng.normal(size=200)
    expected = stats.pearsonr(stats.rankdata(similarities), stats.rankdata(scores)).statistic
    assert rank_correlation(similarities, scores) == pytest.approx(expected, abs=1e-4)
    assert rank_correlation(similarities, scores) == pytest.approx(
        stats.spearmanr(similarities, scores).statistic, abs=1e-4
    )
    assert rank_correlation(-scores, scores) == pytest.approx(-1)


def test_rounding_errors_do_not_order_equal_similarities():
    scores = np.arange(6.0)
    similarities = np.array([0.5, 0.5, 0.5, 0.9, 0.9, 0.9])
    noisy = similarities + 1e-8 * np.array([2, 1, 0, 0, 1, 2])
    assert rank_correlation(noisy, scores) == pytest.approx(stats.spearmanr(similarities, scores).statistic)
    assert rank_correlation(0.5 + 1e-5 * scores, scores) == pytest.approx(1)  # these are no rounding errors


def test_a_collapsed_encoder_has_no_rank_correlation():
    assert math.isnan(rank_correlation(1 - 1e-12 * np.arange(4.0), np.arange(4.0)))


@pytest.mark.parametrize('form', [np.asarray, csr_matrix, csr_array])
@pytest.mark.parametrize('block_bytes', [1, 2**20])
def test_ranks_by_hand(form, block_bytes, monkeypatch):
    monkeypatch.setattr(sentences, 'BLOCK_BYTES', block_bytes)
    passages = form(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 2.0]]))
    queries = form(np.array([[3.0, 0.1], [0.0, 2.0], [1.0, 0.5], [1.0, 1.0], [1.0, 1.0]]))
    ranks = own_ranks(queries, passages, np.array([0, 0, 1, 2, 3]))
    # Passages 2 and 3 are equally similar to every query; the lower index comes first.
    assert ranks.tolist() == [1, 4, 4, 1, 2]
    assert reciprocal_ranks(ranks, 10).tolist() == [1, 0.25, 0.25, 1, 0.5]
    assert reciprocal_ranks(ranks, 2).tolist() == [1, 0, 0, 1, 0.5]


def test_ranks_are_those_of_a_sort():
    rng = np.random.default_rng(0)
    queries, passages = rng.normal(size=(30, 6)), rng.normal(size=(50, 6))
    own = rng.integers(50, size=30)
    order = np.argsort(-cosine_similarity(queries, passages), axis=1)
    expected = [1 + int(np.flatnonzero(row == mine)[0]) for row, mine in zip(order, own, strict=True)]
    assert own_ranks(queries, passages, own).tolist() == expected
