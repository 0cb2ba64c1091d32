import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from dualcl_jax.evaluators.measures.clustering import agreement, cluster


def nmi_and_ari(clusters, labels):
    """NMI and ARI by their definitions, from joint frequencies and from pairs, in float64."""
    same_cluster, same_label = (values[:, None] == values[None] for values in (clusters, labels))
    upper = np.triu_indices(len(labels), 1)
    together, first, second = (x[upper].sum() for x in (same_cluster & same_label, same_cluster, same_label))
    pairs = len(upper[0])
    expected = first * second / pairs
    ari = (together - expected) / ((first + second) / 2 - expected)
    joint = np.array(
        [[np.mean((clusters == a) & (labels == b)) for b in np.unique(labels)] for a in np.unique(clusters)]
    )
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)

    def entropy(p):
        return -np.sum(p[p > 0] * np.log(p[p > 0]))

    mutual = entropy(rows) + entropy(columns) - entropy(joint.ravel())
    return 2 * mutual / (entropy(rows) + entropy(columns)), ari


@pytest.mark.parametrize('noise', [0.1, 0.6, 100.0])
def test_agreement_is_by_definition(noise):
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=120)
    clusters = np.where(rng.uniform(size=120) < noise, rng.integers(5, size=120), labels + 7)
    found, (nmi, ari) = agreement(clusters, labels), nmi_and_ari(clusters, labels)
    assert found.nmi == pytest.approx(nmi, abs=1e-9)
    assert found.ari == pytest.approx(ari, abs=1e-9)


def test_names_of_clusters_do_not_matter():
    labels = np.arange(60) % 3
    assert agreement(10 - labels, labels) == pytest.approx((1, 1))
    assert agreement(np.zeros(60, int), labels) == pytest.approx((0, 0))


def test_clusters_agree_with_scikit_learn_and_are_deterministic():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(5, 10))
    labels = rng.integers(5, size=3000)
    features = ((centres[labels] + 0.5 * rng.normal(size=(3000, 10))) * rng.uniform(0.1, 50, (3000, 1))).astype(
        np.float32
    )
    found = cluster(features, 5, starts=3, seed=2)
    np.testing.assert_array_equal(found, cluster(features, 5, starts=3, seed=2))
    reference = KMeans(5, n_init=3, random_state=2).fit_predict(normalize(features))
    assert agreement(found, reference).ari > 0.99
    assert 0.5 < agreement(found, labels).nmi < 1


def test_collapsed_features_are_one_cluster():
    found = cluster(np.ones((50, 4), np.float32), 3, starts=2, seed=0)
    assert len(np.unique(found)) == 1
    assert agreement(found, np.arange(50) % 3).ari == pytest.approx(0)
