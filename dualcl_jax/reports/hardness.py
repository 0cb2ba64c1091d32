"""Measures hardness: the negatives that anchors select from the queue, their share of the softmax, the loss of images.

The encoders run in evaluation mode. In training, an anchor is a view, and BN uses the statistics of its batch.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dualcl_jax.data import Source
from dualcl_jax.losses import Contrast, cosine, info_nce, normalize
from dualcl_jax.method import randomness
from dualcl_jax.method.build import Method
from dualcl_jax.method.negatives.queue import UNKNOWN, Queue, batch_queue, valid
from dualcl_jax.method.negatives.selectors import allowed_slots
from dualcl_jax.method.state import TrainState
from dualcl_jax.models.encoder import Variables

PARTS = (64, 32, 16, 8, 4, 2)
"""The hardest 1/64 to 1/2 of the negatives, whose share of the softmax is reported."""
BLOCK = 250
"""How many images are encoded at a time."""
BYTES = 2**28
"""The size of the similarities that are computed at a time, of some of the anchors and the whole queue."""
NO_IMAGE = -2
"""The id of an anchor that is not a training image; no slot of the queue has this id."""


class Negative(NamedTuple):
    """A selected negative: its id in the training split (-1: noise), class (-1: unknown), cosine, and age in steps."""

    image: int
    label: int
    similarity: float
    age: int


@dataclasses.dataclass(frozen=True)
class Anchor:
    """An anchor and its negatives.

    Attributes:
      image: its index in the training split.
      label: its class, or -1.
      hardest: the hardest of its selected negatives, the most similar first.
      selected: how many negatives were selected.
      allowed: from how many they were selected.
      same_class: the share of the selected negatives that are of the anchor's class; None without labels.
      same_class_queue: the same share over all allowed negatives.
    """

    image: int
    label: int
    hardest: list[Negative]
    selected: int
    allowed: int
    same_class: float | None
    same_class_queue: float | None


def negatives_of(method: Method, state: TrainState, train: Source, batch_size: int) -> Queue:
    """The queue of a run. If its negatives come from the batch: the keys of a batch of unaugmented training images."""
    if state.queue is not None:
        return state.queue
    ids = np.random.default_rng(0).permutation(len(train))[:batch_size]
    keys = _embed_images(method, state.momentum_variables, train, ids, predict=False)
    return batch_queue(
        jnp.asarray(keys), jnp.asarray(train.ids[ids]), jnp.asarray(train.labels[ids]), jnp.asarray(state.step)
    )


def hardest_negatives(
    method: Method, state: TrainState, train: Source, images: NDArray, queue: Queue, k: int, shown: int
) -> list[Anchor]:
    """Finds the hardest selected negatives of training images, which are encoded without augmentation.

    The method's selector selects them from the allowed slots, as in training.

    Args:
      method: the method of the run.
      state: the state of a checkpoint.
      train: the training split.
      images: [n], the anchors' indices in the training split.
      queue: the queue of `negatives_of`.
      k: how many negatives are selected.
      shown: the most negatives to return for each anchor.
    """
    anchors = jnp.asarray(_embed_images(method, state.variables, train, images, predict=True))
    allowed = _allowed(method, state, queue, jnp.asarray(train.ids[images]))
    contrast = _contrast(method, state, queue, k, anchors, anchors, allowed)
    similarities = np.asarray(contrast.selection.similarities)
    slots = np.asarray(contrast.selection.take(jnp.arange(queue.size, dtype=jnp.int32)))
    of_image, classes, written = (np.asarray(column) for column in (queue.ids, queue.labels, queue.enqueued_at))

    def negative(slot: int, similarity: float) -> Negative:
        age = int(state.step) - int(written[slot]) if written[slot] != UNKNOWN else UNKNOWN
        return Negative(int(of_image[slot]), int(classes[slot]), float(similarity), age)

    found, slots_allowed = [], np.asarray(allowed)
    for row, image in enumerate(images):
        order = np.argsort(-similarities[row], kind='stable')
        order = order[similarities[row][order] > -np.inf]
        label, chosen, candidates = int(train.labels[image]), slots[row][order], np.flatnonzero(slots_allowed[row])
        found.append(
            Anchor(
                image=int(image),
                label=label,
                hardest=[negative(slots[row][column], similarities[row][column]) for column in order[:shown]],
                selected=len(chosen),
                allowed=len(candidates),
                same_class=_same_class(classes[chosen], label),
                same_class_queue=_same_class(classes[candidates], label),
            )
        )
    return found


def image_losses(
    method: Method, state: TrainState, source: Source, images: NDArray, queue: Queue, k: int, *, of_training: bool
) -> NDArray[np.float32]:
    """Computes the loss [n] of each image: InfoNCE of a view as query, another as key, and the selected negatives.

    Args:
      method: the method of the run.
      state: the state of a checkpoint.
      source: the source of the images.
      images: [n], their indices in the source.
      queue: the queue of `negatives_of`.
      k: how many negatives are selected.
      of_training: whether they are training images, whose keys may be in the queue.
    """
    losses = []
    for anchors in _view_pairs(method, state, source, images):
        ids = jnp.asarray(anchors.ids if of_training else np.full(BLOCK, NO_IMAGE), jnp.int32)
        block = []
        for rows in _rows(queue, anchors.size):
            given = anchors.queries[rows], anchors.keys[rows], _allowed(method, state, queue, ids[rows])
            block.append(np.asarray(_contrast(method, state, queue, k, *given, first=rows.start).loss))
        losses.append(np.concatenate(block)[: anchors.size])
    return np.concatenate(losses)


def softmax_shares(
    method: Method,
    state: TrainState,
    train: Source,
    images: NDArray,
    queue: Queue,
    parts: Sequence[int],
    temperatures: Sequence[float],
) -> NDArray[np.float64]:
    """Computes the share of the softmax over all negatives that the hardest 1/part of them hold, at each temperature.

    A negative with cosine s weighs exp(s/τ) among all allowed negatives: this is its share of the force that repels the
    query (1807.03748). The shares are means over images, of which one view is the query, as in `image_losses`.

    Args:
      method: the method of the run.
      state: the state of a checkpoint.
      train: the training split.
      images: [n], indices in the training split.
      queue: the queue of `negatives_of`.
      parts: such as 4 for the hardest quarter, rounded down to whole negatives, but at least one.
      temperatures: each τ > 0.

    Returns:
      [len(temperatures), len(parts)]; NaN if no image has a negative.
    """
    shares = []
    for anchors in _view_pairs(method, state, train, images):
        for rows in _rows(queue, anchors.size):
            allowed = np.asarray(_allowed(method, state, queue, jnp.asarray(anchors.ids[rows], jnp.int32)))
            similarities = np.asarray(cosine(anchors.queries[rows], queue.keys))
            for row, candidates in zip(similarities[: anchors.size - rows.start], allowed, strict=False):
                if not candidates.any():
                    continue
                hardest = -np.sort(-row[candidates].astype(np.float64))
                last = [max(len(hardest) // part, 1) - 1 for part in parts]
                held = np.cumsum(np.exp((hardest - hardest[0]) / np.asarray(temperatures)[:, None]), axis=1)
                shares.append(held[:, last] / held[:, -1:])
    return np.mean(shares, axis=0) if shares else np.full((len(temperatures), len(parts)), np.nan)


class _ViewPairs(NamedTuple):
    """A block of `size` images, padded to BLOCK: their `Source.ids` [BLOCK], and their queries and keys [BLOCK, D]."""

    size: int
    ids: NDArray
    queries: jax.Array
    keys: jax.Array


def _view_pairs(method: Method, state: TrainState, source: Source, images: NDArray) -> Iterator[_ViewPairs]:
    """Encodes one view of each image [n] as query and another as key; the random keys follow the order of `images`."""
    for start in range(0, len(images), BLOCK):
        chosen = images[start : start + BLOCK]
        padded = _fill(chosen)
        positions = jnp.arange(start, start + BLOCK, dtype=jnp.int32)
        rngs = randomness.example_keys(method.seed, randomness.VIEWS, jnp.asarray(state.step), positions)
        views = _make_views(method, rngs, source.examples(padded))
        first, second = (jax.tree.map(lambda leaf, view=view: leaf[view], views) for view in (0, 1))
        queries = _embed_block(method, state.variables, first, True)
        keys = _embed_block(method, state.momentum_variables, second, False)
        yield _ViewPairs(len(chosen), source.ids[padded], queries, keys)


def _embed_images(
    method: Method, variables: Variables, source: Source, indices: NDArray, *, predict: bool
) -> NDArray[np.float32]:
    """Computes unit embeddings [n, D] of images without augmentation, one block at a time; resizes them if needed."""
    parts = []
    for start in range(0, len(indices), BLOCK):
        chosen = indices[start : start + BLOCK]
        plain = method.views.plain(source.examples(_fill(chosen)))
        parts.append(np.asarray(_embed_block(method, variables, plain, predict))[: len(chosen)])
    return np.concatenate(parts)


def _fill(indices: NDArray) -> NDArray:
    """Pads indices to a whole block by repeating the last one, so that one compiled program serves all blocks."""
    return np.pad(indices, (0, BLOCK - len(indices)), mode='edge')


@partial(jax.jit, static_argnums=(0, 3))
def _embed_block(method: Method, variables: Variables, views: Any, predict: bool) -> jax.Array:
    predict = predict and 'predictor' in variables['params']
    encoded: Any = method.encoder.apply(variables, views, train=False, predict=predict)
    return normalize(encoded.projection)


@partial(jax.jit, static_argnums=0)
def _make_views(method: Method, keys: jax.Array, examples: Any) -> Any:
    return method.views.make(keys, examples)


def _allowed(method: Method, state: TrainState, queue: Queue, ids: jax.Array) -> jax.Array:
    """Which slots may be negatives of the anchors of images `ids` [b], [b, K] bool."""
    mask = method.mask_same_image or state.queue is None  # without a queue, the anchor itself may be in the batch
    return allowed_slots(valid(queue), queue.ids, ids, mask_same_image=mask)


def _rows(queue: Queue, size: int) -> Iterator[slice]:
    """Parts of a block, equal in size, whose similarities to the queue take at most `BYTES`; those of `size` images."""
    most = max(BYTES // (4 * queue.size), 1)
    count = next(count for count in range(min(most, BLOCK), 0, -1) if BLOCK % count == 0)
    return (slice(start, start + count) for start in range(0, size, count))


def _contrast(
    method: Method,
    state: TrainState,
    queue: Queue,
    k: int,
    anchors: jax.Array,
    positives: jax.Array,
    allowed: jax.Array,
    first: int = 0,
) -> Contrast:
    """Computes the loss of anchors [b] with negatives selected as in training from the slots `allowed` [b, K].

    `first` is the position of the first anchor, from which random choices derive.
    """
    positions = jnp.arange(first, first + len(anchors), dtype=jnp.int32)
    rngs = randomness.example_keys(method.seed, randomness.NEGATIVES, jnp.asarray(state.step), positions)
    return _info_nce(method, k, anchors, positives, queue.keys, allowed, rngs)


@partial(jax.jit, static_argnums=(0, 1))
def _info_nce(
    method: Method,
    k: int,
    anchors: jax.Array,
    positives: jax.Array,
    keys: jax.Array,
    allowed: jax.Array,
    rngs: jax.Array,
) -> Contrast:
    return info_nce(
        anchors,
        positives,
        keys,
        allowed,
        temperature=method.temperature,
        hardness=method.hardness,
        select=method.select,
        k=k,
        rngs=rngs,
    )


def _same_class(classes: NDArray, label: int) -> float | None:
    """The share of the known classes [n] that equal `label`; None if it or all of them are unknown."""
    known = classes[classes != UNKNOWN]
    return float((known == label).mean()) if label != UNKNOWN and len(known) else None
