"""Random views of sentences: what may be in them, how often, and on what they depend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dualcl_jax.method.views.text import (
    TEXT_PRESETS,
    Preset,
    TextSpec,
    TextViews,
    draw_counts,
    resample,
    resolve_text_views,
    text_views,
)
from dualcl_jax.system.errors import UserError

LENGTH, FIRST, LAST = 16, 2, 3


def sentence(count: int) -> tuple[np.ndarray, np.ndarray]:
    """A sentence of `count` different tokens: int32 [L] and []."""
    tokens = np.zeros(LENGTH, np.int32)
    tokens[: count + 2] = [FIRST, *range(10, 10 + count), LAST]
    return tokens, np.int32(count + 2)


def examples(*counts: int) -> dict[str, jax.Array]:
    """An example of as many sentences as there are numbers, each of that many tokens."""
    tokens, length = zip(*map(sentence, counts), strict=True)
    return {'tokens': jnp.asarray(np.stack(tokens))[None], 'length': jnp.asarray(np.stack(length))[None]}


def many(spec: TextSpec, count: int, draws: int = 400) -> list[list[int]]:
    """The tokens between the first and the last one of many views of a sentence."""
    keys = jax.random.split(jax.random.key(0), draws)
    batch = jax.tree.map(lambda leaf: jnp.repeat(leaf, draws, axis=0), examples(count))
    views = jax.jit(TextViews(Preset((spec, spec)), LENGTH).make)(keys, batch)
    rows = []
    for tokens, length in zip(np.asarray(views['tokens'][1]), np.asarray(views['length'][1]), strict=True):
        assert tokens[0] == FIRST
        assert tokens[length - 1] == LAST
        assert 2 <= length <= LENGTH
        rows.append(tokens[1 : length - 1].tolist())
    return rows


def test_nothing_changes() -> None:
    assert many(TextSpec(), 5, draws=2) == [[10, 11, 12, 13, 14]] * 2


def test_deletion() -> None:
    rows = many(TextSpec(deletion=0.3), 10)
    kept = np.array([[token in row for token in range(10, 20)] for row in rows])
    assert all(row == sorted(set(row)) for row in rows)
    np.testing.assert_allclose(kept.mean(axis=0), 0.7, atol=0.08)
    assert all(many(TextSpec(deletion=0.95), 3))  # one is always left


def test_crop() -> None:
    rows = many(TextSpec(crop_scale=(0.3, 0.6)), 10)
    assert all(row == list(range(row[0], row[0] + len(row))) for row in rows)
    assert {len(row) for row in rows} == {3, 4, 5}
    assert {row[0] for row in rows} == set(range(10, 18))
    assert {row[-1] for row in rows} == set(range(12, 20))
    assert {len(row) for row in many(TextSpec(crop_scale=(0.05, 0.1)), 3, draws=20)} == {1}


def test_repetition() -> None:
    """Up to max(2, rate · n) tokens are repeated in their place (2109.04380, §3.1)."""
    rows = many(TextSpec(repetition=0.4), 10)
    added = [len(row) - 10 for row in rows]
    assert all(sorted(set(row)) == list(range(10, 20)) and row == sorted(row) for row in rows)
    assert all(row.count(token) <= 2 for row in rows for token in row)
    np.testing.assert_allclose(np.bincount(added, minlength=5) / len(rows), 1 / 5, atol=0.08)
    assert {len(row) for row in many(TextSpec(repetition=0.1), 4)} == {4, 5, 6}
    assert max(len(row) for row in many(TextSpec(repetition=0.5), 14)) == LENGTH - 2  # cut


def test_the_empty_sentence() -> None:
    spec = TextSpec(crop_scale=(0.1, 0.5), deletion=0.5, repetition=0.5)
    assert many(spec, 0, draws=3) == [[], [], []]


@pytest.mark.parametrize('seed', range(3))
def test_resample_is_repeat(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens, length = sentence(9)
    counts = np.zeros(LENGTH, np.int32)
    counts[1:10] = rng.integers(0, 3, 9)
    found, size = resample(jnp.asarray(tokens), jnp.asarray(length), jnp.asarray(counts))
    expected = [FIRST, *np.repeat(tokens, counts)[: LENGTH - 2], LAST]
    assert found[: int(size)].tolist() == expected


def test_views_depend_on_their_example_alone() -> None:
    views = TextViews(TEXT_PRESETS['contriever'], LENGTH)
    batch = {name: jnp.concatenate([examples(count)[name] for count in (9, 12, 7)]) for name in ('tokens', 'length')}
    keys = jax.random.split(jax.random.key(1), 3)
    whole = views.make(keys, batch)
    one = views.make(keys[1:2], jax.tree.map(lambda leaf: leaf[1:2], batch))
    assert {name: leaf.shape for name, leaf in whole.items()} == {
        'tokens': (2, 3, LENGTH),
        'length': (2, 3),
        'dropout': (2, 3, 2),
    }
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours[:, 0], theirs[:, 1]), one, whole)
    assert len({tuple(key) for key in np.asarray(whole['dropout']).reshape(-1, 2).tolist()}) == 6


def test_pairs() -> None:
    views = TextViews(TEXT_PRESETS['pair']._replace(specs=(TextSpec(), TextSpec())), LENGTH)
    batch = examples(4, 6)
    made = views.make(jax.random.split(jax.random.key(0), 1), batch)
    assert made['length'].tolist() == [[6], [8]]
    np.testing.assert_array_equal(made['tokens'][:, 0], batch['tokens'][0])
    plain = views.plain(batch)
    assert plain.keys() == views.blank().keys() == {'tokens', 'length'}
    np.testing.assert_array_equal(plain['tokens'], batch['tokens'][:, 0])


def test_bags_of_words() -> None:
    views = TextViews(TEXT_PRESETS['simcse'], LENGTH)
    tokens, length = sentence(4)
    tokens[2] = tokens[1]
    bags = np.asarray(views.raw({'tokens': tokens[None, None], 'length': length[None, None]}))
    assert bags.shape == (1, 2048)
    assert sorted(bags[bags > 0].tolist()) == [1, 1, 2]
    buckets = [int(np.uint32(token * 2_654_435_761 % 2**32) >> 21) for token in (10, 12, 13)]
    np.testing.assert_array_equal(bags[0, buckets], [2, 1, 1])


def test_draws_are_used() -> None:
    """The three parts of the draws belong to crop, deletion and repetition."""
    draws = jnp.concatenate([jnp.full(3, 0.9), jnp.zeros(LENGTH).at[3].set(0.99), jnp.zeros(LENGTH)])
    counts = draw_counts(draws, jnp.int32(8), TextSpec(deletion=0.5, repetition=1.0))
    assert counts.tolist() == [0, 0, 0, 2] + [0] * 12


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'preset': 'moco_v2'}, r'views.preset=moco_v2: is not for text; choose one of simcse, '),
        ({'preset': 'simcse', 'hue': 0.1}, r'views.hue: is not for text; leave it out'),
        ({'preset': 'simcse', 'deletion': 1.0}, r'views.deletion: 1.0 is outside \[0, 1\)'),
        ({'preset': 'simcse', 'repetition': -0.1}, r'views.repetition: -0.1 is outside \[0, 1\]'),
        ({'preset': 'simcse', 'crop_scale': (0.5, 0.2)}, r'views.crop_scale: \(0.5, 0.2\) is not a range'),
    ],
)
def test_mistakes(fields: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve_text_views(ConfigDict(fields))


@pytest.mark.parametrize(
    ('preset', 'counts', 'said'),
    [
        ('pair', (3,), 'needs two columns, as in data.columns=term,definition, and data.columns=x names 1'),
        ('simcse', (3, 3), 'takes one column, and data.columns=x names 2'),
    ],
)
def test_the_number_of_sentences(preset: str, counts: tuple[int, ...], said: str) -> None:
    config = ConfigDict({'views': {'preset': preset}, 'data': {'columns': 'x'}})
    with pytest.raises(UserError, match=said):
        text_views(config, examples(*counts))


def test_descriptions() -> None:
    described = {name: TextViews(preset, 32).describe() for name, preset in TEXT_PRESETS.items()}
    assert described['simcse'] == 'of one sentence, as it is; 32 tokens'
    assert described['esimcse'] == 'of one sentence, as it is and repetition 0.32; 32 tokens'
    assert described['contriever'] == 'of one sentence, crops of 0.05 to 0.5, deletion 0.1; 32 tokens'
