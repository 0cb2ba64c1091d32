"""The content of a report as plain values; `page` lays it out."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import NDArray

from dualcl_jax.data.describe import baseline_name, units
from dualcl_jax.evaluators.measures.knn import knn_predict, nearest_others
from dualcl_jax.evaluators.records import SCHEMA, check_values
from dualcl_jax.method.describe import describe_method
from dualcl_jax.method.negatives.selectors import build_selector
from dualcl_jax.method.resolve import LEFT_OUT
from dualcl_jax.reports.confusion import confusion
from dualcl_jax.reports.figures import settled_step
from dualcl_jax.reports.hardness import PARTS, Anchor, hardest_negatives, image_losses, negatives_of, softmax_shares
from dualcl_jax.reports.samples import Samples, one_per_class
from dualcl_jax.reports.shown import PICTURES, TEXTS, Shown
from dualcl_jax.reports.subject import Subject
from dualcl_jax.system.config import flatten
from dualcl_jax.system.console import duration
from dualcl_jax.system.files import absolute, matching
from dualcl_jax.system.kinds import IMAGES
from dualcl_jax.workdir.metrics import KNN, STS

Content = dict[str, Any]

SERIES_POINTS = 400
"""The most points of a curve; a longer curve becomes means over parts of equal length."""
MAP_NEIGHBOURS = 6
ANCHORS, ANCHOR_POOL = 8, 500
HARDEST = 10
TIMES = ' × 100'
"""The end of the format of a number that is shown a hundred times as large."""
RECORD = [name for name in SCHEMA if name not in ('seed', 'versions')]
"""The fields of a record of an evaluation that the page shows."""


def describe(run: Subject, samples: Samples) -> Content:
    """Collects everything that the page shows of a run; `missing` gives the reason for each part that is left out."""
    missing, train = dict[str, str](), run.splits.train
    shown = Shown(train)
    if shown.form is None:
        missing['examples'] = f'Examples are {train.kind}, which have no pictures'
    facts = describe_method(run.config, run.method, run.splits, run.state.params)
    facts['steps'] = f'{run.step:,} of {run.total_steps:,} ({run.step / run.steps_per_epoch:.3g} epochs)'
    if run.versions:
        facts['ran on'] = ', '.join(f'{name} {run.versions[name]}' for name in ('device', 'python', 'jax'))
    predictions = _predictions(run, samples, missing)
    selector = build_selector(run.config.negatives.selector, run.config.negatives)
    method = dataclasses.replace(run.method, select=selector)  # a queue that was sharded is whole here
    queue = negatives_of(method, run.state, train, run.config.train.batch_size)
    count = _selected_count(run)
    losses = image_losses(
        method, run.state, samples.source, samples.shown, queue, count, of_training=samples.of_training
    )
    pool = np.random.default_rng(0).permutation(len(train))[:ANCHOR_POOL]
    chosen = pool[one_per_class(train.labels[pool], ANCHORS)]
    anchors = hardest_negatives(method, run.state, train, chosen, queue, count, HARDEST) if shown.form else []
    (shares,) = softmax_shares(method, run.state, train, pool, queue, PARTS, [run.config.loss.temperature])
    if train.class_names is None:
        missing['classes'] = 'The data set has no labels; the parts that need them are left out'
    return {
        'name': absolute(run.folder).name or str(run.folder),
        'fingerprint': samples.source.fingerprint,
        'facts': facts,
        'numbers': _numbers(run),
        'series': _series(run.records),
        'settled': settled_step(run.records),
        'kind': units(train.kind),
        'baseline': baseline_name(train.kind),
        'of': samples.of,
        'form': shown.form,
        'class_names': list(train.class_names or ()),
        'map': _map(samples, losses, predictions, shown, missing),
        'neighbours': _neighbours(run, samples, shown) if shown.form else [],
        'bank_size': len(samples.banked),
        'gallery': [_anchor(run, anchor, shown) for anchor in anchors],
        'softmax': {
            'temperature': run.config.loss.temperature,
            'images': len(pool),
            'shares': list(zip(PARTS, shares.tolist(), strict=True)) if np.isfinite(shares).all() else [],
        },
        'from_batch': run.state.queue is None,
        'confusion': _confusion(samples, predictions, train.labels[samples.banked]),
        'knn': {'k': run.config.monitor.k, 'temperature': run.config.monitor.temperature},
        'evaluations': _evaluations(run.folder, missing),
        'config': dict(flatten(run.config)),
        'versions': dict(run.versions),
        'missing': missing,
        'sprite': {
            'uri': shown.sprite.data_uri(),
            'side': shown.sprite.side,
            'pitch': shown.sprite.pitch,
            'columns': shown.sprite.columns,
        },
    }


def _numbers(run: Subject) -> list[dict[str, str]]:
    """The numbers at the top of the page, each with name, value and remark. Omits those that were not measured."""
    start = next((record for record in run.records if record['step'] == 0), dict[str, Any]())
    last = partial(_last, run.records)
    knn, percent = f'k {run.config.monitor.k}, τ {run.config.monitor.temperature:g}', '{:.1f} %'
    spearman, times = f'Spearman{TIMES}', '{:.1f}' + TIMES
    origin = 'the encoder it starts from' if run.config.init_from else 'random encoder'
    kind = run.splits.train.kind
    chance = _beside('chance', '{:.2f}', last('train/loss_chance'))
    of_allowed = _beside('of all allowed', percent, last('train/same_class_rate'))
    rate = 'images a second' if kind == IMAGES else 'examples a second'
    measured: list[tuple[str, float | None, str, str]] = [
        ('kNN, backbone', last(KNN.backbone), percent, knn),
        ('kNN, projection', last(KNN.projection), percent, knn),
        ('kNN, before training', start.get(KNN.backbone), percent, origin),
        (f'kNN, {baseline_name(kind)}', start.get(KNN.baseline), percent, 'no encoder'),
        ('STS-B dev, backbone', last(STS.backbone), times, spearman),
        ('STS-B dev, projection', last(STS.projection), times, spearman),
        ('STS-B dev, before training', start.get(STS.backbone), times, origin),
        ('STS-B dev, TF-IDF', start.get(STS.baseline), times, 'no encoder'),
        ('contrastive loss', last('train/loss'), '{:.3f}', chance),
        ('same-class negatives', last('train/false_negative_rate'), percent, of_allowed),
        ('effective rank', last('train/effective_rank'), '{:.1f}', f'of {run.method.dim}, queries'),
        (rate, last('time/images_per_second'), '{:,.0f}', 'in training'),
    ]
    found = [
        {'name': name, 'value': _written(value, form), 'remark': remark}
        for name, value, form, remark in measured
        if value is not None
    ]
    if run.records:
        found.append({'name': 'time', 'value': duration(run.records[-1]['wall_time_s']), 'remark': 'with evaluation'})
    return found


def _last(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The newest value of a metric after the start; None if it was not measured."""
    found = (record[name] for record in reversed(records) if record['step'] and record.get(name) is not None)
    return next(found, None)


def _written(value: float, form: str) -> str:
    """Formats a value; `form` ends with '%' or `TIMES` if the value is shown a hundred times as large."""
    if form.endswith(TIMES):
        return form.removesuffix(TIMES).format(100 * value)
    return form.format(100 * value if form.endswith('%') else value)


def _beside(name: str, form: str, value: float | None) -> str:
    """A remark with another number; empty if that was not measured."""
    return '' if value is None else f'{name} {_written(value, form)}'


def _series(records: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The curve of each metric that has a value as (step, value) pairs, without records that lack it."""
    with_value = {name for record in records for name, value in record.items() if value is not None}
    names = sorted(with_value - {'step', 'wall_time_s'})
    series = {}
    for name in names:
        rows = [(record['step'], record[name]) for record in records if record.get(name) is not None]
        parts = np.array_split(np.array(rows, np.float64), min(SERIES_POINTS, len(rows)))
        series[name] = [(round(float(s), 1), float(f'{v:.5g}')) for s, v in (part.mean(axis=0) for part in parts)]
    return series


def _selected_count(run: Subject) -> int:
    """How many negatives the next step of this state selects."""
    schedule = run.method.count_negatives
    return run.method.num_negatives if schedule is None else int(schedule(run.state.step))


def _predictions(run: Subject, samples: Samples, missing: dict[str, str]) -> NDArray[np.int32] | None:
    """Predicts the class [n] of each shown image from its nearest training images; None if that is meaningless.

    It is -1 for images of classes that the training images lack, where `monitor.unseen` leaves such images out.
    """
    bank_labels = run.splits.train.labels[samples.banked]
    known = bank_labels >= 0
    classes = np.unique(bank_labels[known])
    strange = (samples.labels >= 0) & ~np.isin(samples.labels, classes) & (run.config.monitor.unseen == LEFT_OUT)
    if samples.of_training:
        missing['confusion'] = 'there is no test split'
    elif not len(classes):
        missing['confusion'] = 'the training images have no labels'
    elif len(classes) == 1:
        missing['confusion'] = 'all labels are of one class'
    elif not (samples.labels >= 0).any():
        missing['confusion'] = 'the held-out images have no labels'
    elif not ((samples.labels >= 0) & ~strange).any():
        missing['confusion'] = 'no held-out image has a class of the training images'
    elif not (np.isfinite(samples.features).all() and np.isfinite(samples.bank).all()):
        missing['confusion'] = 'the features are not finite'
    else:
        predicted = knn_predict(
            samples.features,
            samples.bank[known],
            bank_labels[known],
            k=run.config.monitor.k,
            temperature=run.config.monitor.temperature,
            num_classes=int(classes[-1]) + 1,
        )
        return np.where(strange, np.int32(-1), predicted)
    return None


def _map(
    samples: Samples,
    losses: NDArray,
    predictions: NDArray | None,
    shown: Shown,
    missing: dict[str, str],
) -> Content | None:
    """The positions of images in the plane, scaled to [0, 1], and the details of each image."""
    if samples.points is None:
        missing['map'] = 'the features are not finite, or there are fewer than 3 images'
        return None
    low, span = samples.points.min(axis=0), np.ptp(samples.points, axis=0).max()
    points = (samples.points - low) / max(float(span), 1e-12)
    _, near = nearest_others(samples.features, MAP_NEIGHBOURS)
    examples = shown.show(samples.source, samples.shown)
    return {
        'ids': samples.shown.tolist(),
        'x': [round(float(x), 4) for x in points[:, 0]],
        'y': [round(float(y), 4) for y in points[:, 1]],
        'labels': samples.labels.tolist(),
        'losses': [round(float(loss), 3) if np.isfinite(loss) else None for loss in losses],
        'predictions': None if predictions is None else predictions.tolist(),
        'near': near.tolist(),
        'tiles': [example['tile'] for example in examples] if shown.form == PICTURES else None,
        'texts': [example['text'] for example in examples] if shown.form == TEXTS else None,
    }


def _neighbours(run: Subject, samples: Samples, shown: Shown) -> list[Content]:
    """Some examples with their nearest training examples."""
    train, rows = run.splits.train, []
    for query, found, similarities in zip(samples.queries, *samples.nearest, strict=True):
        index = samples.shown[query]
        label = int(samples.source.labels[index])
        (example,) = shown.show(samples.source, np.array([index]))
        near = zip(shown.show(train, found), train.labels[found].tolist(), similarities.tolist(), strict=True)
        rows.append(
            example
            | {
                'label': label,
                'near': [
                    other | {'label': of, 'similarity': similarity, 'same': _same(label, of)}
                    for other, of, similarity in near
                ],
            }
        )
    return rows


def _anchor(run: Subject, anchor: Anchor, shown: Shown) -> Content:
    """An anchor, and what is shown of its negatives: nothing for a negative without an example."""
    train = run.splits.train
    (example,) = shown.show(train, np.array([anchor.image]))
    fields = dataclasses.asdict(anchor)
    fields['hardest'] = [
        negative._asdict()
        | (shown.show(train, np.array([negative.image]))[0] if negative.image >= 0 else {})
        | {'same': _same(anchor.label, negative.label)}
        for negative in anchor.hardest
    ]
    return fields | example


def _same(label: int, other: int) -> bool | None:
    """Whether two labels are the same class; None if one of them is unknown."""
    return label == other if min(label, other) >= 0 else None


def _confusion(samples: Samples, predictions: NDArray | None, bank_labels: NDArray) -> Content | None:
    """How often images of one class are predicted as another, given the labelled images of the bank."""
    if predictions is None:
        return None
    labelled = samples.labels >= 0
    known = labelled & (predictions >= 0)
    counts = {'bank': int((bank_labels >= 0).sum()), 'left_out': int((labelled & ~known).sum())}
    return confusion(samples.labels[known], predictions[known]) | counts


def _evaluations(folder: epath.Path, missing: dict[str, str]) -> list[Content]:
    """The records of `dualcl_jax.evaluate` in `evaluation/`; `missing` names the files that hold none."""
    parent, found, strange = folder / 'evaluation', list[Content](), list[str]()
    for path in matching(parent, '*.json', '*/*.json'):
        try:
            records = [{name: of[name] for name in RECORD} for of in json.loads(path.read_text())['records']]
            for record in records:
                check_values(record)
        except (ValueError, KeyError, TypeError):
            strange.append(path.name)
        else:
            found += records
    if strange:
        missing['evaluations'] = f'These files in evaluation/ are not results of an evaluation: {", ".join(strange)}'
    return found
