"""Results of the protocols of images, recomputed from the features of the encoder that was chosen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier

from dualcl_jax import data
from dualcl_jax.data.images.source import image_source
from dualcl_jax.evaluators import protocols
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.evaluators.measures.corruptions import corrupt
from dualcl_jax.evaluators.measures.linear import choose_probe, predict
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.evaluations import printed_records


def momentum_features(workdir: Path) -> tuple[Callable[[Any], Any], tuple[Any, Any], tuple[Any, Any]]:
    """The momentum encoder, a function from a source to its features, and each split of the run with its features."""
    opened = open_saved_run(str(workdir))
    blocks = Embedder(opened.method, opened.mesh)

    def embed(source: Any) -> Any:
        return blocks(opened.state.momentum_variables, source, np.arange(len(source)))

    train, test = data.load(opened.config.data)
    return embed, (train, embed(train)), (test, embed(test))


def test_knn_is_scikit_learns_on_the_encoders_features(run, workdir: Path) -> None:
    found = printed_records(
        run(workdir, 'knn', '--config.knn.k=1,7', '--config.knn.temperature=0.3', '--encoders=momentum')
    )
    _, (train, bank), (test, queries) = momentum_features(workdir)
    assert len(found) == 4
    for record in found:
        model = KNeighborsClassifier(
            record['k'], metric='cosine', algorithm='brute', weights=lambda distances: np.exp((1 - distances) / 0.3)
        )
        model.fit(getattr(bank, record['layer']), train.labels)
        expected = model.score(getattr(queries, record['layer']), test.labels)
        assert (record['encoder'], record['tau']) == ('momentum', 0.3)
        assert record['value'] == pytest.approx(expected, abs=0.02)  # one of 64 images may have a tie
        assert record['interval']['low'] < record['value'] < record['interval']['high']


def test_retrieval_is_scikit_learns_on_the_encoders_features(run, workdir: Path) -> None:
    found = printed_records(run(workdir, 'retrieval', '--config.retrieval.recall_at=1,2', '--encoders=momentum'))
    _, (train, bank), (test, queries) = momentum_features(workdir)
    expected = {}
    for layer in ('backbone', 'projection'):
        similarities = cosine_similarity(getattr(queries, layer), getattr(bank, layer))
        relevant = test.labels[:, None] == train.labels[None]
        hits = np.take_along_axis(relevant, np.argsort(-similarities, axis=1), axis=1)
        expected[layer, 'map', None] = np.mean(list(map(average_precision_score, relevant, similarities)))
        expected |= {(layer, 'recall', k): hits[:, :k].any(axis=1).mean() for k in (1, 2)}
    values = {(record['layer'], record['metric'], record['k']): record['value'] for record in found}
    assert values == pytest.approx(expected, abs=0.02)
    for layer in ('backbone', 'projection'):
        assert abs(expected[layer, 'map', None] - expected[layer, 'recall', 1]) > 0.05


def test_robustness_is_the_probe_on_the_features_of_corrupted_images(run, workdir: Path) -> None:
    fields = ('epochs=5', 'learning_rates=0.1,0.3', 'weight_decays=0')
    flags = (*(f'--config.linear.{field}' for field in fields), '--encoders=momentum', '--layers=backbone')
    *found, last = printed_records(run(workdir, 'robustness', *flags))
    embed, (train, bank), (test, queries) = momentum_features(workdir)
    settings = {'learning_rates': (0.1, 0.3), 'weight_decays': (0.0,), 'epochs': 5, 'batch_size': 256}
    probe = choose_probe(bank.backbone, train.labels, 4, validation=0.1, seed=0, **settings).probe
    rows = np.arange(len(test))
    values = {(record['details']['corruption'], record['details']['strength']): record['value'] for record in found}
    clean, changed = np.mean(predict(probe, queries.backbone)[0] == test.labels), []
    for name, strength in (('contrast', 5), ('brightness', 5)):
        images = corrupt(test.examples(rows), rows, name=name, strength=strength, seed=0)
        features = embed(image_source(name, images, test.labels, test.class_names))
        changed.append(np.mean(predict(probe, features.backbone)[0] == test.labels))
        assert values[name, strength] == pytest.approx(changed[-1], abs=0.02)
    assert min(changed) < clean - 0.05
    assert (last['metric'], last['value']) == ('mean_top1', pytest.approx(np.mean(list(values.values()))))
    assert last['details']['clean_top1'] == pytest.approx(clean, abs=0.02)
    assert len(values) == 30


def test_fine_tuning_starts_from_the_chosen_encoder(run, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def tune(method, mesh, variables, images, num_classes, recipe, **_):
        started.append((variables, len(images)))
        return variables

    def classify(embed, tuned, images, rows, advance):
        assert tuned is started[-1][0]
        return images.labels[rows]

    monkeypatch.setattr(protocols, 'train_classifier', tune)
    monkeypatch.setattr(protocols, 'predict_classes', classify)
    shares = '--config.semi.fractions=0.1', '--config.semi.epochs=1'
    found = printed_records(run(workdir, 'finetune,semi', '--encoders=momentum', *shares))
    expected = open_saved_run(str(workdir)).state.momentum_variables
    for record, (variables, labels) in zip(found, started, strict=True):
        assert (record['encoder'], record['value'], record['details']['labels']) == ('momentum', 1.0, labels)
        chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, tree) for tree in (variables, expected)))
    assert [labels for _, labels in started] == [256, 24]
