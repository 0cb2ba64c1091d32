"""An exported encoder of sentences, with the tokenizer that it needs."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from dualcl_jax.models.encoder import Variables
from dualcl_jax.models.exports.encoder import Described, Description, LoadedEncoder, check_positive, compute
from dualcl_jax.system.errors import UserError, reason_of
from dualcl_jax.system.tree import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDescription(Described):
    """Describes an exported encoder of sentences, see `Described`.

    Attributes:
      length: L, the number of tokens to which sentences are cut, including the first and the last one.
      tokenizer: the content of the `tokenizer.json` of the run.
    """

    length: int
    tokenizer: str = dataclasses.field(repr=False)

    def inputs(self, count: Any) -> Tree:
        """Tokens int32 [count, L] and lengths int32 [count], as in `dualcl_jax.models.text`."""
        shapes = {'tokens': (count, self.length), 'length': (count,)}
        return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}

    def prepare(self, inputs: Tree) -> Tree:
        return inputs

    def view(self) -> Tree:
        return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in self.inputs(1).items()}

    @classmethod
    def check(cls, values: dict[str, Any]) -> dict[str, Any]:
        check_positive(values, 'features', 'length')
        if not isinstance(values['tokenizer'], str):
            raise ValueError('its tokenizer is not text')
        return {}

    @functools.cached_property
    def loaded_tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer, which cuts sentences to L tokens. Raises ValueError if it cannot be used."""
        try:
            tokenizer = tokenizers.Tokenizer.from_str(self.tokenizer)
            tokenizer.no_padding()
            tokenizer.enable_truncation(self.length)
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f'its tokenizer cannot be used: {reason_of(error)}') from error
        return tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedTextEncoder:
    """An exported encoder that can be called on sentences.

    Attributes:
      description: describes the encoder.
      function: maps {'tokens': int32 [N, L], 'length': int32 [N]} to features float32 [N, F].
    """

    description: TextDescription
    function: Callable[[Tree], jax.Array] = dataclasses.field(repr=False)

    def __call__(self, sentences: Iterable[str]) -> jax.Array:
        """Computes features float32 [N, F] of N sentences.

        Raises:
          UserError: the argument is not a list of texts, or one holds an unpaired surrogate.
        """
        return self.function(self.tokens(sentences))

    def tokens(self, sentences: Iterable[str]) -> dict[str, np.ndarray]:
        """Encodes N sentences as tokens, as `function` takes them. Raises UserError as `__call__` does."""
        given = list(sentences) if isinstance(sentences, Iterable) and not isinstance(sentences, str) else [None]
        texts = [text for text in given if isinstance(text, str)]
        if len(texts) < len(given):
            raise UserError('this encoder takes a list of sentences, such as ["a cat", "a dog"]')
        for number, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f'sentences[{number}]: its character {error.start} is an unpaired surrogate, '
                    f"{text[error.start]!a}; replace it, for example with '\\ufffd'"
                ) from error
        encoded = self.description.loaded_tokenizer.encode_batch_fast(texts)
        tokens = np.zeros((len(encoded), self.description.length), np.int32)
        for row, sentence in zip(tokens, encoded, strict=True):
            row[: len(sentence.ids)] = sentence.ids
        return {'tokens': tokens, 'length': np.array([len(sentence.ids) for sentence in encoded], np.int32)}


def read_description(metadata: Any) -> Description | TextDescription:
    """Reads the description of an encoder of images or of sentences from its metadata.

    Raises:
      ValueError: a field is missing or has an impossible value.
    """
    kind: Any = TextDescription if isinstance(metadata, dict) and 'tokenizer' in metadata else Description
    return kind.from_metadata(metadata)


def with_variables(
    description: Description | TextDescription, variables: Variables
) -> LoadedEncoder | LoadedTextEncoder:
    """Makes an encoder with this description and these variables, to be called on images or on sentences."""
    function = jax.jit(partial(compute, description, description.build()))
    return loaded(description, partial(function, jax.device_put(variables)))


def loaded(
    description: Description | TextDescription, function: Callable[[Any], jax.Array]
) -> LoadedEncoder | LoadedTextEncoder:
    """Makes an encoder with this description and function, to be called on images or on sentences."""
    if isinstance(description, TextDescription):
        description.loaded_tokenizer  # noqa: B018 - a damaged one is found now
        return LoadedTextEncoder(description, function)
    return LoadedEncoder(description, function)
