"""Compares the blockwise contrast with the queue with `info_nce` on all rows and with JAX's own gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest

from dualcl_jax.losses import info_nce, normalize, select_all
from dualcl_jax.method.negatives import queue_loss
from dualcl_jax.method.negatives.queue import Queue, empty_queue, enqueue, valid
from dualcl_jax.method.negatives.queue_loss import Anchors, QueueContrast, contrast_with_queue, summarize
from dualcl_jax.method.negatives.selectors import SELECTORS, allowed_slots, build_selector
from dualcl_jax.training import cost

B, K, D, SELECTED = 12, 40, 8, 9
SELECT: dict[str, Callable] = {name: build_selector(name, {'skip': 3}) for name in SELECTORS}


def make(filled: int = 30) -> tuple[jax.Array, jax.Array, Anchors, Queue]:
    rngs = jax.random.split(jax.random.key(0), 5)
    keys = normalize(jax.random.normal(rngs[0], (filled, D)))
    ids, labels = (jax.random.randint(rng, (filled,), 0, 6) for rng in rngs[1:3])
    anchors, positives = (normalize(jax.random.normal(rng, (B, D))) for rng in rngs[3:])
    which = jnp.arange(B, dtype=jnp.int32) % 6
    rows = Anchors(which, which, which % 4 - 1, jax.random.split(jax.random.key(1), B))
    return anchors, positives, rows, enqueue(empty_queue(K, D), keys, ids, labels, jnp.int32(0))


def as_a_whole(
    anchors: jax.Array,
    positives: jax.Array,
    rows: Anchors,
    queue: Queue,
    selector: str,
    hardness: float,
    temperature: float,
) -> QueueContrast:
    allowed = allowed_slots(valid(queue), queue.ids, rows.ids, mask_same_image=True)
    contrast = info_nce(
        anchors,
        positives,
        queue.keys,
        allowed,
        temperature=temperature,
        hardness=hardness,
        select=SELECT[selector],
        k=SELECTED,
        rngs=rows.rngs,
    )
    return summarize(contrast, rows.labels, queue.labels)


LOSSES = [
    *((selector, 0.0, 0.2) for selector in SELECT),
    ('all', 1.5, 0.2),  # without a closed form
    ('all', 0.0, 0.02),  # likewise, as exp(2 / 0.02) overflows
]
"""Selector, hardness and temperature."""
SIZES = [(5, 4, True), (30, B, False), (0, B, True), (0, B, False), (30, 1, True)]
"""Filled slots, anchors in a block, and whether the loss may be computed in closed form."""
FAST = {'all': SIZES[:3], 'top_k': SIZES[:2]}
"""Sizes of the fast tests; the first alone for the other selectors."""


@pytest.mark.parametrize(
    ('selector', 'hardness', 'temperature', 'filled', 'anchors_in_a_block', 'closed_form'),
    [
        pytest.param(*loss, *sizes, marks=[] if sizes in FAST.get(loss[0], SIZES[:1]) else pytest.mark.slow)
        for loss in LOSSES
        for sizes in SIZES
    ],
)
def test_equals_info_nce(
    monkeypatch: pytest.MonkeyPatch,
    selector: str,
    hardness: float,
    temperature: float,
    filled: int,
    anchors_in_a_block: int,
    closed_form: bool,
) -> None:
    monkeypatch.setattr(queue_loss, 'CPU', queue_loss.Blocks(anchors_in_a_block * K * 4, 1, 2 * K * 4, closed_form))
    anchors, positives, rows, queue = make(filled)
    weights = jnp.linspace(0.5, 2.0, B)  # so that the gradients of the rows differ

    def streamed(anchors: jax.Array, positives: jax.Array, rows: Anchors, queue: Queue) -> QueueContrast:
        return contrast_with_queue(
            anchors,
            positives,
            rows,
            queue,
            temperature=temperature,
            hardness=hardness,
            select=SELECT[selector],
            k=SELECTED,
        )

    def loss(contrast: Callable, *arguments: Any) -> tuple[jax.Array, QueueContrast]:
        found = contrast(*arguments)
        return (weights * found.loss).sum(), found

    run = [
        jax.jit(jax.value_and_grad(partial(loss, contrast), (0, 1), has_aux=True))
        for contrast in (streamed, partial(as_a_whole, selector=selector, hardness=hardness, temperature=temperature))
    ]
    # the queue is no constant of the programs, so most of them are equal and compiled once
    found, expected = (differentiated(anchors, positives, rows, queue) for differentiated in run)
    chex.assert_trees_all_close(found, expected, rtol=2e-6 / temperature, atol=1e-6)


def test_the_queue_gets_no_gradient() -> None:
    anchors, positives, rows, queue = make()

    def loss(keys: jax.Array) -> jax.Array:
        contrast = contrast_with_queue(
            anchors,
            positives,
            rows,
            queue.replace(keys=keys),
            temperature=0.2,
            select=select_all,
            k=1,
        )
        return contrast.loss.sum()

    assert not jax.jit(jax.grad(loss))(queue.keys).any()


@pytest.mark.parametrize(
    ('bytes_', 'least', 'blocks'), [(4 * K, 1, B), (4 * K, 5, 2), (4 * K, 100, 1), (4 * 4 * K, 1, 3), (2**20, 1, 1)]
)
def test_reads_of_the_queue(monkeypatch: pytest.MonkeyPatch, bytes_: int, least: int, blocks: int) -> None:
    """The roofline counts as many reads as the program makes: two for each block that runs."""
    runs: list[int] = []
    whole = queue_loss.cosine

    def observed(anchors: jax.Array, keys: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: runs.append(len(anchors)))
        return whole(anchors, keys)

    monkeypatch.setattr(queue_loss, 'CPU', queue_loss.Blocks(bytes_, least, 2 * K * 4))
    monkeypatch.setattr(queue_loss, 'cosine', observed)
    anchors, positives, rows, queue = make()

    def loss(anchors: jax.Array) -> jax.Array:
        return contrast_with_queue(
            anchors, positives, rows, queue, temperature=0.2, select=SELECT['all'], k=1
        ).loss.sum()

    traced = jax.jit(jax.grad(loss)).trace(anchors)
    jax.block_until_ready(traced.lower().compile()(anchors))
    jax.effects_barrier()
    assert runs == [B // blocks] * blocks
    assert cost.count(traced.jaxpr, 'cpu', queue.keys.shape).reads == 2 * blocks
