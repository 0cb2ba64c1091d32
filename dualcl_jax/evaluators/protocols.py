"""The protocols: measurements of frozen features, of a fine-tuned network, and of the embedding itself."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dualcl_jax.data.describe import noun
from dualcl_jax.evaluators import text_protocols as text
from dualcl_jax.evaluators.benchmarks.classification import read_classification
from dualcl_jax.evaluators.benchmarks.passages import read_passages
from dualcl_jax.evaluators.benchmarks.sts import read_sts
from dualcl_jax.evaluators.derived import Derived
from dualcl_jax.evaluators.intervals import normal, wilson
from dualcl_jax.evaluators.measures.clustering import agreement, cluster
from dualcl_jax.evaluators.measures.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from dualcl_jax.evaluators.measures.few_shot import centroid_accuracies, draw_shots
from dualcl_jax.evaluators.measures.finetune import Recipe, balanced_rows, predict_classes, train_classifier
from dualcl_jax.evaluators.measures.knn import knn_blocks, knn_grid
from dualcl_jax.evaluators.measures.linear import predict
from dualcl_jax.evaluators.measures.retrieval import retrieval_blocks, retrieve
from dualcl_jax.evaluators.measures.structure import (
    alignment,
    class_distances,
    effective_rank,
    purity,
    std_per_dimension,
    uniformity,
)
from dualcl_jax.evaluators.records import Result
from dualcl_jax.evaluators.task import Task
from dualcl_jax.system.console import progress
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.kinds import IMAGES, TEXT

Results = Iterator[Result]
PURITY = {'share_of': 'min(k, others of the class)'}
"""Details of the purity, which earlier versions gave as a share of k for every class."""


def _top1(
    task: Task, predicted: np.ndarray, encoder: str, layer: str, details: Mapping[str, Any] | None = None, **more: Any
) -> Result:
    """An accuracy in [0, 1] of predictions for the test images at `task.known`, with its interval."""
    labels = task.query_labels
    share = float(np.mean(predicted == labels))
    details, interval = _details(task, details), wilson(share, len(labels))
    return Result('top1', share, encoder, layer, interval, examples=len(labels), details=details, **more)


def _details(task: Task, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Details of a result, with the test images that were left out, if any."""
    return dict(details or {}) | ({'left_out': task.left_out} if task.left_out else {})


def knn(task: Task) -> Results:
    """Weighted kNN (1805.01978) of test images among the training images, over a grid of k and τ.

    A k above the number of training images stands for all of them, once.
    """
    asked: dict[int, list[int]] = {}
    for k in task.settings.knn.k:
        asked.setdefault(min(k, len(task.rows['train'])), []).append(k)
    ks, temperatures = tuple(asked), task.settings.knn.temperature
    for encoder, layer in task.places:
        bank, queries = task.features('train', encoder, layer), task.queries(encoder, layer)
        with progress(knn_blocks(len(queries), len(bank)), f'kNN, {encoder}, {layer}') as advance:
            grid = knn_grid(
                queries,
                bank,
                task.labels('train'),
                ks=ks,
                temperatures=temperatures,
                num_classes=task.num_classes,
                advance=advance,
            )
        for k, row in zip(ks, grid, strict=True):
            details = {'asked_k': asked[k]} if asked[k] != [k] else {}
            for tau, predicted in zip(temperatures, row, strict=True):
                yield _top1(task, predicted, encoder, layer, details, k=k, tau=tau)


def linear(task: Task) -> Results:
    """Linear probe of frozen features, with learning rate and decay chosen on held-out training images."""
    for encoder, layer in task.places:
        choice = task.probe(encoder, layer)
        predicted = predict(choice.probe, task.queries(encoder, layer))[0]
        details = {
            'learning_rate': choice.learning_rate,
            'weight_decay': choice.weight_decay,
            'validation_top1': choice.validation_top1,
            'sweep': len(task.settings.linear.learning_rates) * len(task.settings.linear.weight_decays),
        }
        yield _top1(task, predicted, encoder, layer, details)


def finetune(task: Task) -> Results:
    """The backbone and a classifier trained on every labelled training image."""
    recipe = Recipe(**task.settings.finetune)
    for encoder in task.encoders:
        yield _tuned(task, encoder, np.arange(len(task.rows['train'])), recipe, {})


def semi(task: Task) -> Results:
    """Fine-tuning on a share of the labels, the same number of each class."""
    settings = task.settings.semi
    for encoder in task.encoders:
        for share, epochs in zip(settings.fractions, settings.epochs, strict=True):
            chosen = balanced_rows(task.labels('train'), share, task.seed)
            recipe = dataclasses.replace(Recipe(**task.settings.finetune), epochs=epochs)
            yield _tuned(task, encoder, chosen, recipe, {'fraction': share})


def _tuned(task: Task, encoder: str, chosen: np.ndarray, recipe: Recipe, details: dict[str, Any]) -> Result:
    """Accuracy after fine-tuning on the chosen labelled training images."""
    run = task.source.run
    assert run is not None  # the protocol needs one
    images = task.labelled('train', chosen)
    with progress(recipe.steps(len(images)), f'fine-tuning on {len(images):,} images, {encoder}') as advance:
        tuned = train_classifier(
            run.method,
            run.mesh,
            task.source.encoders[encoder],
            images,
            task.num_classes,
            recipe,
            seed=task.seed,
            advance=advance,
        )
    test, embed = task.labelled('test', task.known), task.source.blocks
    with progress(embed.num_blocks(len(test)), 'test images') as advance:
        predicted = predict_classes(embed, tuned, test, np.arange(len(test)), advance)
    details = details | {'labels': len(images)} | dataclasses.asdict(recipe)
    return _top1(task, predicted, encoder, 'backbone', details)


def few_shot(task: Task) -> Results:
    """Nearest class centroid from n images of each class: the mean over many draws. The interval is over the draws.

    Only classes with n training images take part; without two of them, or test images of them, n is left out.
    """
    settings, train = task.settings.few_shot, task.labels('train')
    for count in settings.shots:
        enough = shot_classes(task, count)
        if not len(enough):
            continue
        tested = np.isin(task.query_labels, enough)
        chosen = draw_shots(_among(train, enough), len(enough), count, settings.draws, task.seed)
        labels = _among(task.query_labels[tested], enough)
        details = _details(task, {'shots': count, 'draws': settings.draws})
        fewer = len(np.unique(train)) - len(enough)
        if fewer:
            details |= {'classes': len(enough), 'classes_with_fewer_images': fewer}
        for encoder, layer in task.places:
            bank, queries = task.features('train', encoder, layer), task.queries(encoder, layer)[tested]
            accuracies = centroid_accuracies(bank, chosen, queries, labels)
            yield Result(
                'top1',
                float(accuracies.mean()),
                encoder,
                layer,
                normal(accuracies),
                examples=len(labels),
                details=details | {'std': float(accuracies.std(ddof=1))},
            )


def shot_classes(task: Task, count: int) -> np.ndarray:
    """The classes with `count` training images, sorted; none if they are fewer than two or have no test image."""
    classes, sizes = np.unique(task.labels('train'), return_counts=True)
    enough = classes[sizes >= count]
    return enough if len(enough) > 1 and np.isin(task.query_labels, enough).any() else enough[:0]


def _among(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The place of each label among sorted classes; -1 if it is none of them."""
    places = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    return np.where(classes[places] == labels, places, -1).astype(np.int32)


def retrieval(task: Task) -> Results:
    """Test images as queries against all training images: mean average precision and recall at k."""
    ks = task.settings.retrieval.recall_at
    for encoder, layer in task.places:
        bank, queries = task.features('train', encoder, layer), task.queries(encoder, layer)
        with progress(retrieval_blocks(len(queries), len(bank)), f'retrieval, {encoder}, {layer}') as advance:
            found = retrieve(queries, task.query_labels, bank, task.labels('train'), ks=ks, advance=advance)
        precision = found.average_precision
        result = partial(Result, encoder=encoder, layer=layer, examples=len(precision), details=_details(task))
        yield result('map', float(precision.mean()), interval=normal(precision))
        for k, hits in zip(ks, found.found, strict=True):
            share = float(hits.mean())
            yield result('recall', share, interval=wilson(share, len(hits)), k=k)


def clustering(task: Task) -> Results:
    """k-means of the test images with as many clusters as classes: NMI and ARI. One class has no clusters to find."""
    labels = task.labels('test')
    clusters = len(np.unique(labels))
    if clusters < 2:
        return
    details = {'clusters': clusters, 'starts': task.settings.clustering.starts}
    for encoder, layer in task.places:
        found = cluster(task.features('test', encoder, layer), clusters, starts=details['starts'], seed=task.seed)
        for metric, value in agreement(found, labels)._asdict().items():
            yield Result(metric, value, encoder, layer, details=details)


def robustness(task: Task) -> Results:
    """The linear probe's accuracy on corrupted test images, by corruption and strength, and the mean over them."""
    rows, seed = task.rows['test'][task.known], task.seed
    for encoder in task.encoders:
        accuracies: dict[str, list[float]] = {layer: [] for layer in task.layers}
        for name in CORRUPTIONS:
            for strength in STRENGTHS:
                change = partial(corrupt, name=name, strength=strength, seed=seed)
                images = Derived(task.split('test'), rows, change)
                features = task.embed(encoder, images, np.arange(len(images)), f'{name} {strength}, {encoder}')
                for layer in task.layers:
                    predicted = predict(task.probe(encoder, layer).probe, features[layer])[0]
                    details: dict[str, Any] = {'corruption': name, 'strength': strength}
                    result = _top1(task, predicted, encoder, layer, details)
                    accuracies[layer].append(result.value)
                    yield result
        for layer in task.layers:
            clean = predict(task.probe(encoder, layer).probe, task.queries(encoder, layer))[0]
            details = _details(task, {'clean_top1': float(np.mean(clean == task.query_labels))})
            mean = float(np.mean(accuracies[layer]))
            yield Result('mean_top1', mean, encoder, layer, examples=len(rows), details=details)


def structure(task: Task) -> Results:
    """How the embedding lies on the sphere, for query and momentum encoder side by side, with or without labels."""
    (name, chosen), settings = structure_rows(task), task.settings.structure
    rows = task.rows[name]
    if len(chosen) < 2:
        one = noun(task.source.kind).removesuffix('s')
        raise UserError(f'{task.split(name).name}: one {name} {one} has no structure; choose a set with more')
    labels = task.labels(name)[chosen]
    _, counts = np.unique(labels[labels >= 0], return_counts=True)
    for encoder in task.source.encoders:
        what = f'{name} examples, {encoder}'
        views = task.embed_views(encoder, task.split(name), rows[chosen], f'views of {what}')
        whole_split = len(chosen) == len(rows)
        plain = {} if whole_split else task.embed(encoder, task.split(name), rows[chosen], what)
        for layer in task.source.layers:
            features = task.features(name, encoder, layer) if whole_split else plain[layer]
            result = partial(Result, encoder=encoder, layer=layer, split=name, examples=len(chosen))
            yield result('alignment', alignment(views[layer][:, 0], views[layer][:, 1]))
            yield result('uniformity', uniformity(features))
            yield result('effective_rank', effective_rank(features), details={'dimensions': features.shape[1]})
            spread = std_per_dimension(features)
            details = {'least': float(np.min(spread)), 'most': float(np.max(spread)), 'by_dimension': spread.tolist()}
            yield result('std_per_dimension', float(spread.mean()), details=details)
            if len(counts) > 1 and np.max(counts) > 1:
                shares = purity(features, labels, settings.k)
                alone = {'alone_in_class': len(chosen) - len(shares)} if len(shares) < len(chosen) else {}
                of = {'k': settings.k, 'examples': len(shares), 'details': PURITY | alone}
                yield result('purity', float(shares.mean()), interval=normal(shares), **of)
                within, between = class_distances(features, labels)
                yield result('intra_class_distance', within)
                yield result('inter_class_distance', between)


def structure_rows(task: Task) -> tuple[str, np.ndarray]:
    """The split that `structure` measures, and which of its `rows` it takes, in ascending order."""
    name = 'test' if 'test' in task.rows else 'train'
    order = np.random.default_rng(task.seed).permutation(len(task.rows[name]))
    return name, np.sort(order[: task.settings.structure.images])


class Protocol(NamedTuple):
    """What can be measured of an encoder.

    Attributes:
      run: maps a task to its results.
      needs_labels: whether it needs labels in both splits.
      needs_run: whether it needs a run, so that an export does not suffice.
      kind: the only kind of examples that it is made for; None for all kinds.
      uses: the protocol whose settings it uses beside its own.
      read: maps `path` in its settings to the content of its own files, for a protocol that measures these and not
        the data of the evaluation; None for others.
    """

    run: Callable[[Task], Results]
    needs_labels: bool = True
    needs_run: bool = False
    kind: str | None = None
    uses: str | None = None
    read: Callable[[str], Any] | None = None


# To add a protocol, write a function and add a line here.
PROTOCOLS: dict[str, Protocol] = {
    'knn': Protocol(knn),
    'linear': Protocol(linear),
    'finetune': Protocol(finetune, needs_run=True, kind=IMAGES),
    'semi': Protocol(semi, needs_run=True, kind=IMAGES, uses='finetune'),
    'few_shot': Protocol(few_shot),
    'retrieval': Protocol(retrieval),
    'clustering': Protocol(clustering),
    'robustness': Protocol(robustness, kind=IMAGES, uses='linear'),
    'structure': Protocol(structure, needs_labels=False),
}
_of_text = partial(Protocol, needs_labels=False, kind=TEXT)
TEXT_PROTOCOLS: dict[str, Protocol] = {
    'sts': _of_text(text.sts, read=read_sts),
    'retrieval': _of_text(text.retrieval, read=read_passages),
    'transfer': _of_text(text.transfer, read=read_classification),
}
"""Protocols for text only. For text, they replace those of the same name above."""
NAMES = tuple(PROTOCOLS | TEXT_PROTOCOLS)


def protocols_of(kind: str) -> dict[str, Protocol]:
    """The protocols by name that can measure encoders of this kind of examples."""
    own = TEXT_PROTOCOLS if kind == TEXT else {}
    return {name: protocol for name, protocol in PROTOCOLS.items() if protocol.kind in (None, kind)} | own


def kind_of(name: str) -> str | None:
    """The kind of examples that a protocol is made for; None if it measures encoders of several kinds."""
    return (TEXT_PROTOCOLS | PROTOCOLS)[name].kind
