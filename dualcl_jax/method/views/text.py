"""Random views of text on the device: crop, deletion and repetition of tokens, or the two sentences of a pair.

A sentence is int32 [L] tokens, of which the first `length` count: [CLS], the n tokens of the text, [SEP]. A view is a
sentence again, with the same first and last token; every token between them occurs 0, 1 or 2 times. Each example has
its own PRNG key, so that a view depends on that key alone, not on the batch or the number of devices.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dualcl_jax.system.errors import UserError

RAW_FEATURES = 2048
"""Length of the hashed bag of words of a sentence."""
HASH = 2_654_435_761
"""Knuth's multiplier: the high bits of its product with an id, modulo 2^32, are a hash of the id."""


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """The recipe of one view; the default changes nothing. Hashable, so it can be a static argument of `jax.jit`.

    Crop, deletion and repetition apply to the n tokens between the first and the last one, in this order. A crop keeps
    a span whose share of the tokens is drawn uniformly from `crop_scale`, and at least one token. Deletion drops each
    token with that probability, but never all. Repetition (ESimCSE, 2109.04380) repeats up to max(2, repetition · n)
    tokens, a number drawn uniformly. The result is cut to L tokens.

    Raises:
      UserError: a value is outside its range; the message names the field as `views.FIELD`.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    deletion: float = 0.0
    repetition: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, 'crop_scale', tuple(self.crop_scale))  # a list would not be hashable
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(f'views.crop_scale: {self.crop_scale} is not a range (low, high) with 0 < low <= high <= 1')
        for name, bound in (('deletion', '[0, 1)'), ('repetition', '[0, 1]')):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (value == 1 and name == 'deletion'):
                raise UserError(f'views.{name}: {value} is outside {bound}')


class Preset(NamedTuple):
    """The recipes of both views, and whether they are views of the two sentences of a pair or of one sentence."""

    specs: tuple[TextSpec, TextSpec]
    pair: bool = False


_CROPPED = TextSpec(crop_scale=(0.05, 0.5), deletion=0.1)

TEXT_PRESETS: dict[str, Preset] = {
    'simcse': Preset((TextSpec(), TextSpec())),  # 2104.08821: the views differ by the encoder's dropout alone
    'esimcse': Preset((TextSpec(), TextSpec(repetition=0.32))),  # 2109.04380
    'mocose': Preset((TextSpec(), TextSpec())),  # 2202.13093, without its adversarial perturbation of embeddings
    'contriever': Preset((_CROPPED, _CROPPED)),  # 2112.09118
    'pair': Preset((TextSpec(deletion=0.1), TextSpec(deletion=0.1)), pair=True),  # ours
}


def resolve_text_views(views: Any) -> Preset:
    """The recipe of both views: a preset, with the fields that a `views` config overrides.

    Raises:
      UserError: the preset or a field is not for text, or a value is outside its range.

    Example:
      >>> from ml_collections import ConfigDict
      >>> resolve_text_views(ConfigDict({'preset': 'esimcse', 'deletion': 0.2, 'hue': None})).specs[1]
      TextSpec(crop_scale=(1.0, 1.0), deletion=0.2, repetition=0.32)
    """
    if views.preset not in TEXT_PRESETS:
        raise UserError(f'config.views.preset={views.preset}: is not for text; choose one of {", ".join(TEXT_PRESETS)}')
    chosen = {name: value for name, value in views.items() if name != 'preset' and value is not None}
    for name in sorted(chosen.keys() - {field.name for field in dataclasses.fields(TextSpec)}):
        raise UserError(f'config.views.{name}: is not for text; leave it out')
    preset = TEXT_PRESETS[views.preset]
    first, second = preset.specs
    return Preset((dataclasses.replace(first, **chosen), dataclasses.replace(second, **chosen)), preset.pair)


def draw_counts(draws: jax.Array, length: jax.Array, spec: TextSpec) -> jax.Array:
    """Draws how often each token of a sentence occurs in a view.

    Args:
      draws: float32 [2 L + 3] in [0, 1).
      length: [] int32, the number of tokens that count.
      spec: the recipe.

    Returns:
      int32 [L], 0 for the first and the last token and for padding.

    Example:
      >>> draw_counts(jnp.full((15,), 0.5), jnp.int32(5), TextSpec()).tolist()
      [0, 1, 1, 1, 0, 0]
    """
    size = (draws.shape[0] - 3) // 2
    span, start, repeats = draws[:3]
    deletion, repetition = draws[3 : 3 + size], draws[3 + size :]
    places, inside = jnp.arange(size), length - 2
    kept = (places >= 1) & (places <= inside)
    if spec.crop_scale != (1.0, 1.0):
        low, high = spec.crop_scale
        tokens = jnp.clip(_share(low + (high - low) * span, inside), 1, jnp.maximum(inside, 1))
        first = 1 + _share(start, inside - tokens + 1)
        kept &= (places >= first) & (places < first + tokens)
    if spec.deletion:
        largest = jnp.max(jnp.where(kept, deletion, -1.0))
        kept &= (deletion >= spec.deletion) | (deletion == largest)
    counts = kept.astype(jnp.int32)
    if spec.repetition:
        number = _share(repeats, 1 + jnp.maximum(2, _share(spec.repetition, counts.sum())))
        rank = jnp.sum(kept[None, :] & (repetition[None, :] < repetition[:, None]), axis=1)
        counts += (kept & (rank < number)).astype(jnp.int32)
    return counts


def _share(share: ArrayLike, count: jax.Array) -> jax.Array:
    """The share of a count, [] int32, rounded down."""
    return jnp.floor(share * count.astype(jnp.float32)).astype(jnp.int32)


def resample(tokens: jax.Array, length: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Repeats the tokens of a sentence as often as `counts` specifies, and cuts the result to L tokens.

    Args:
      tokens: int32 [L], with the first and the last token.
      length: [] int32, the number of tokens that count, at least 2.
      counts: int32 [L], from `draw_counts`.

    Returns:
      Tokens int32 [L], padded with the last token, and their new length, [] int32.

    Example:
      >>> tokens, length = resample(jnp.array([2, 7, 8, 9, 3, 0]), jnp.int32(5), jnp.array([0, 0, 2, 1, 0, 0]))
      >>> tokens.tolist(), int(length)
      ([2, 8, 8, 9, 3, 3], 5)
    """
    size = tokens.shape[0]
    ends, places = jnp.cumsum(counts), jnp.arange(size)
    inside = jnp.minimum(ends[-1], size - 2)
    source = jnp.sum(ends[None, :] <= places[:, None] - 1, axis=1)
    source = jnp.where(places > inside, length - 1, jnp.where(places == 0, 0, source))
    return jnp.take(tokens, source, mode='clip'), inside + 2


@dataclasses.dataclass(frozen=True)
class TextViews:
    """Views of text, `dualcl_jax.method.views.Views` of {'tokens': int32 [n, C, L], 'length': int32 [n, C]}.

    A view for the encoder is {'tokens': int32 [n, L], 'length': int32 [n]}. Random views also have 'dropout',
    uint32 [n, 2], the data of a PRNG key for each example and view. The encoder draws its dropout from it; without it,
    there is no dropout. The query and the key of one view share it, because the loss compares a query with the key of
    the other view.

    Attributes:
      preset: the recipes of both views. For a pair, view 1 is of the first sentence and view 2 of the second.
      length: L.
    """

    preset: Preset
    length: int

    @property
    def host_recipe(self) -> None:
        """None: the host passes on whole examples."""
        return None

    def make(self, keys: jax.Array, examples: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Makes random views: a tree [2, n, ...]."""
        made = [self._view(number, keys, examples) for number, _ in enumerate(self.preset.specs)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)

    def _view(self, number: int, keys: jax.Array, examples: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        column, spec = number if self.preset.pair else 0, self.preset.specs[number]

        def one(key: jax.Array, tokens: jax.Array, length: jax.Array) -> dict[str, jax.Array]:
            draw_key, dropout_key = jax.random.split(jax.random.fold_in(key, number))
            if spec != TextSpec():
                draws = jax.random.uniform(draw_key, (2 * self.length + 3,))
                tokens, length = resample(tokens, length, draw_counts(draws, length, spec))
            return {'tokens': tokens, 'length': length, 'dropout': jax.random.key_data(dropout_key)}

        return jax.vmap(one)(keys, examples['tokens'][:, column], examples['length'][:, column])

    def plain(self, examples: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Takes the first sentence of each example unchanged, without dropout."""
        return {'tokens': examples['tokens'][:, 0], 'length': examples['length'][:, 0]}

    def raw(self, examples: Mapping[str, jax.Array]) -> jax.Array:
        """Makes hashed bags of words of the first sentences, float32 [n, 2048]: the number of tokens in each bucket."""
        tokens, length = jnp.asarray(examples['tokens'])[:, 0], jnp.asarray(examples['length'])[:, :1]
        places = jnp.arange(self.length)
        counts = ((places[None] >= 1) & (places[None] < length - 1)).astype(jnp.float32)
        shift = 32 - (RAW_FEATURES - 1).bit_length()
        buckets = (tokens.astype(jnp.uint32) * jnp.uint32(HASH)) >> shift
        return jax.vmap(lambda bucket, count: jnp.zeros(RAW_FEATURES).at[bucket].add(count))(buckets, counts)

    def blank(self) -> dict[str, jax.Array]:
        """One empty sentence."""
        return {'tokens': jnp.zeros((1, self.length), jnp.int32), 'length': jnp.full((1,), 2, jnp.int32)}

    def describe(self) -> str:
        """Describes the recipes in words."""

        def described(spec: TextSpec) -> str:
            crop = f'crops of {spec.crop_scale[0]:g} to {spec.crop_scale[1]:g}' if spec.crop_scale != (1.0, 1.0) else ''
            parts = [crop, f'deletion {spec.deletion:g}' if spec.deletion else '']
            parts.append(f'repetition {spec.repetition:g}' if spec.repetition else '')
            return ', '.join(filter(None, parts)) or 'as it is'

        of = 'the sentences of a pair' if self.preset.pair else 'one sentence'
        first, second = map(described, self.preset.specs)
        return f'of {of}, {first}' + ('' if first == second else f' and {second}') + f'; {self.length} tokens'


def text_views(config: Any, examples: Mapping[str, Any]) -> TextViews:
    """Builds the views of text that a resolved config describes.

    Raises:
      UserError: the preset is not for text, or is for another number of sentences.
    """
    preset = resolve_text_views(config.views)
    _, count, length = examples['tokens'].shape
    if preset.pair != (count == 2):
        needed = 'needs two columns, as in data.columns=term,definition' if preset.pair else 'takes one column'
        raise UserError(
            f'config.views.preset={config.views.preset}: {needed}, and data.columns='
            f'{config.data.columns} names {count}; change one of the two'
        )
    return TextViews(preset, length)
