"""How values of a run are read from its evaluation."""

import pytest

from experiments.ablation.measures import MEASURES

SUMMARY = {
    'config': {'data': {'validation_fraction': 0.1}},
    'knn_top1': 0.4,
    'knn_top1_projection': 0.35,
    'knn_top1_raw_pixels': 0.2,
    'knn_top1_random_encoder': 0.25,
}
EVALUATED = [
    {'protocol': protocol, 'metric': 'top1', 'layer': layer, 'value': value}
    for protocol, layer, value in (
        ('knn', 'backbone', 0.41),
        ('knn', 'projection', 0.36),
        ('linear', 'backbone', 0.51),
        ('linear', 'projection', 0.46),
    )
]


@pytest.mark.parametrize('name', ['knn', 'probe'])
def test_accuracies_by_protocol(name: str) -> None:
    measure = MEASURES[name]
    found = measure.read(SUMMARY, [record for record in EVALUATED if record['protocol'] in measure.protocols])
    linear = {'test_linear_backbone': 0.51, 'test_linear_projection': 0.46}
    assert found == {
        'validation_images': True,
        'validation_knn_backbone': 0.4,
        'validation_knn_projection': 0.35,
        'test_knn_backbone': 0.41,
        'test_knn_projection': 0.36,
        'raw_pixels': 0.2,
        'random_encoder': 0.25,
        **(linear if name == 'probe' else {}),
    }
    assert {value.key for value in measure.values} | set(measure.columns) <= set(found)


def test_correlations() -> None:
    """Those of the backbone of the trained encoder, and the baselines on STS-B dev."""
    summary = {'sts_dev_spearman_tf_idf': 0.55}
    places = (('STS-B', 'dev'), ('STS-B', 'test'), ('avg7', 'test'))
    evaluated = [
        {'metric': metric, 'encoder': encoder, 'layer': layer, 'data_set': name, 'split': split, 'value': value}
        for metric, encoder, layer, values in (
            ('spearman', 'query', 'backbone', (0.71, 0.62, 0.53)),
            ('spearman', 'random', 'backbone', (0.41, 0.32, 0.23)),
            ('spearman', 'query', 'projection', (0.7, 0.6, 0.5)),
            ('pearson', 'query', 'backbone', (0.8, 0.9, 1.0)),
        )
        for (name, split), value in zip(places, values, strict=True)
    ]
    found = MEASURES['sts'].read(summary, evaluated)
    assert found == {
        'stsb_dev_backbone': 0.71,
        'stsb_test_backbone': 0.62,
        'avg7_backbone': 0.53,
        'tf_idf': 0.55,
        'random_encoder': 0.41,
    }
    assert tuple(found) == MEASURES['sts'].columns
    assert MEASURES['sts'].validation.key == 'stsb_dev_backbone'
