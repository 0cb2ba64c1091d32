"""The measures by which sweeps compare runs: how the values are measured and read, and what they are called."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dualcl_jax.workdir.metrics import KNN, STS

Evaluated = Sequence[dict[str, Any]]
"""The records of an evaluation, with the schema of `dualcl_jax.evaluators.records`."""


class Value(NamedTuple):
    """One of the values by which runs are compared.

    Attributes:
      key: its name in records and in `runs.csv`.
      heading: its name in tables.
      label: its name in plots and notes.
    """

    key: str
    heading: str
    label: str


@dataclasses.dataclass(frozen=True)
class Measure:
    """Protocols of `dualcl_jax.evaluate` that measure the final encoder of a run, and the words for their values.

    Attributes:
      protocols: names of the protocols.
      title: name of the values × 100.
      short: a shorter one, for the lines that a sweep prints.
      unit: unit of the values × 100, after a space, or nothing.
      test: name of a value on test data.
      examples: name of what passes through the pair of encoders.
      values: what is compared; arms are chosen by the first of them, and the others are measured on test data.
      columns: all measured columns of `runs.csv`, with those of the baselines.
      logged, curve: name of the measurements during training in `metrics.jsonl`, and in the curve of a record.
      settings: 'field=value' of the evaluation of a run with this config.
      describe: the values of a run with this config, in words.
      read: the measured part of a record, from the `summary.json` of a run and the records of its evaluation.
    """

    protocols: tuple[str, ...]
    title: str
    short: str
    unit: str
    test: str
    examples: str
    values: tuple[Value, ...]
    columns: tuple[str, ...]
    logged: str
    curve: str
    settings: Callable[[ConfigDict], tuple[str, ...]]
    describe: Callable[[dict[str, Any]], str]
    read: Callable[[dict[str, Any], Evaluated], dict[str, Any]]

    @property
    def validation(self) -> Value:
        """The value by which arms are chosen."""
        return self.values[0]

    @property
    def axis(self) -> str:
        """Label of an axis of the values × 100."""
        return f'{self.title} in{self.unit}' if self.unit else self.title

    @property
    def rate(self) -> str:
        """Name of the training speed in records and in `runs.csv`."""
        return f'{self.examples}_per_second'

    def shown(self, value: float | None) -> str:
        """A value, a share of 1, as text."""
        return 'not measured' if value is None else f'{100 * value:.1f}{self.unit}'


def _knn_settings(config: ConfigDict) -> tuple[str, ...]:
    return f'knn.k={config.monitor.k}', f'knn.temperature={config.monitor.temperature}'


def _describe_knn(config: dict[str, Any]) -> str:
    settings = config['monitor']
    return f'kNN accuracy of the backbone in % (k {settings["k"]}, τ {settings["temperature"]:g})'


def _read_knn(summary: dict[str, Any], evaluated: Evaluated) -> dict[str, Any]:
    """Accuracies in [0, 1]; None without labels."""
    test = {found['layer']: found['value'] for found in evaluated if found['metric'] == 'top1'}
    return {
        'validation_images': bool(summary['config']['data']['validation_fraction']),
        'validation_knn_backbone': summary['knn_top1'],
        'validation_knn_projection': summary['knn_top1_projection'],
        'test_knn_backbone': test.get('backbone'),
        'test_knn_projection': test.get('projection'),
        'raw_pixels': summary['knn_top1_raw_pixels'],
        'random_encoder': summary['knn_top1_random_encoder'],
    }


def _describe_probe(config: dict[str, Any]) -> str:
    return f'{_describe_knn(config)}, and accuracy of a linear probe of the backbone'


def _read_probe(summary: dict[str, Any], evaluated: Evaluated) -> dict[str, Any]:
    """As `_read_knn`, with the accuracies of linear probes."""
    knn = [found for found in evaluated if found['protocol'] == 'knn']
    linear = {found['layer']: found['value'] for found in evaluated if found['protocol'] == 'linear'}
    return _read_knn(summary, knn) | {
        'test_linear_backbone': linear.get('backbone'),
        'test_linear_projection': linear.get('projection'),
    }


def _sts_settings(config: ConfigDict) -> tuple[str, ...]:
    return (f'sts.path={config.sts.path}',)


def _describe_sts(config: dict[str, Any]) -> str:
    return (
        'Spearman × 100 of cosine similarities of the backbone on STS-B dev, STS-B test, and as the mean of STS12 to '
        '16, STS-B and SICK-R'
    )


def _read_sts(summary: dict[str, Any], evaluated: Evaluated) -> dict[str, Any]:
    """Correlations in [-1, 1] of backbone features; those of the baselines are of STS-B dev."""
    found = {
        (record['encoder'], record['data_set'], record['split']): record['value']
        for record in evaluated
        if record['metric'] == 'spearman' and record['layer'] == 'backbone'
    }
    return {
        'stsb_dev_backbone': found['query', 'STS-B', 'dev'],
        'stsb_test_backbone': found['query', 'STS-B', 'test'],
        'avg7_backbone': found['query', 'avg7', 'test'],
        'tf_idf': summary['sts_dev_spearman_tf_idf'],
        'random_encoder': found['random', 'STS-B', 'dev'],
    }


_KNN = Measure(
    protocols=('knn',),
    title='kNN accuracy',
    short='kNN',
    unit=' %',
    test='test accuracy',
    examples='images',
    values=(
        Value('validation_knn_backbone', 'validation', 'validation images'),
        Value('test_knn_backbone', 'test', 'test images'),
    ),
    columns=(
        'validation_knn_backbone', 'validation_knn_projection', 'test_knn_backbone', 'test_knn_projection',
        'raw_pixels', 'random_encoder',
    ),
    logged=KNN.backbone,
    curve='knn_backbone',
    settings=_knn_settings,
    describe=_describe_knn,
    read=_read_knn,
)  # fmt: skip
MEASURES = {
    'knn': _KNN,
    'probe': dataclasses.replace(
        _KNN,
        protocols=('knn', 'linear'),
        title='accuracy',
        values=(*_KNN.values, Value('test_linear_backbone', 'test, linear', 'test images, linear probe')),
        columns=(*_KNN.columns, 'test_linear_backbone', 'test_linear_projection'),
        describe=_describe_probe,
        read=_read_probe,
    ),
    'sts': Measure(
        protocols=('sts',),
        title='Spearman × 100',
        short='STS-B dev',
        unit='',
        test='test correlation',
        examples='examples',
        values=(
            Value('stsb_dev_backbone', 'STS-B dev', 'STS-B dev'),
            Value('stsb_test_backbone', 'STS-B test', 'STS-B test'),
            Value('avg7_backbone', 'mean of seven', 'mean of seven'),
        ),
        columns=('stsb_dev_backbone', 'stsb_test_backbone', 'avg7_backbone', 'tf_idf', 'random_encoder'),
        logged=STS.backbone,
        curve='stsb_dev_backbone',
        settings=_sts_settings,
        describe=_describe_sts,
        read=_read_sts,
    ),
}  # fmt: skip
"""The measures by the name that a sweep gives: of images with labels (knn, probe) and of sentences (sts)."""
