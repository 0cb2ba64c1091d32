"""Features of sentences that are not in the data of a run: by its encoders, and by the baselines for comparison."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.data import ArraySource, Source
from dualcl_jax.data.text.tokens import Tokenizer
from dualcl_jax.evaluators.task import Task
from dualcl_jax.system.kinds import TEXT

TF_IDF, WORDS = 'tf_idf', 'words'
"""The names of encoder and layer for the baseline without an encoder."""
CORPUS = 200_000
"""The most training examples from which the frequencies of words are taken."""
WIDTHS = (16, 32, 64, 128, 256)
"""Sentences are encoded at the smallest of these lengths that holds them, or at that of the run."""


class SentenceFeatures(NamedTuple):
    """Features of sentences.

    Attributes:
      encoder, layer: what they come from, as in a record.
      features: [N, F], float32 or a sparse matrix.
      details: details of a record about what determines them.
    """

    encoder: str
    layer: str
    features: Any
    details: dict[str, Any]


def encode_all(task: Task, sentences: Sequence[str]) -> Iterator[SentenceFeatures]:
    """Features of N sentences by the encoders and layers of an evaluation, then by the baselines, one at a time.

    The baselines are those of `EncoderSource.baselines`, and TF-IDF.
    """
    tokenizer = task.source.tokenizer
    assert tokenizer is not None  # an encoder of text has one
    widths = WIDTHS if task.source.run else ()  # an exported encoder takes only one length
    for encoder in (*task.encoders, *task.source.baselines.encoders):

        def embed(examples: Source, rows: NDArray[np.int64], encoder: str = encoder) -> dict[str, np.ndarray]:
            return task.embed(encoder, examples, rows, f'sentences, {encoder}')

        layers = embed_sentences(tokenizer, sentences, embed, widths)
        for layer in task.layers:
            yield SentenceFeatures(encoder, layer, layers[layer], {})
    corpus = training_texts(task.splits.train) if task.splits else None
    about = 'the sentences that are measured' if corpus is None else f'{len(corpus):,} training examples'
    yield SentenceFeatures(TF_IDF, WORDS, tf_idf(sentences, corpus), {'idf': about})


def embed_sentences(
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    embed: Callable[[Source, NDArray[np.int64]], Mapping[str, np.ndarray]],
    widths: Sequence[int] = WIDTHS,
) -> dict[str, NDArray[np.float32]]:
    """Features [N, F] by layer of N sentences, without much padding: sentences of similar length are encoded together.

    Args:
      tokenizer: tokenizer of the run.
      sentences: N of them.
      embed: maps examples of text and all of their rows to features by layer.
      widths: lengths that the encoder takes in addition to that of the tokenizer.
    """
    encoded = tokenizer.encode(sentences)
    lengths, longest = encoded['length'][:, 0], encoded['tokens'].shape[2]
    taken = [width for width in widths if width < longest] + [longest]
    place = np.searchsorted(taken, lengths)
    found: dict[str, NDArray[np.float32]] = {}
    for number, width in enumerate(taken):
        rows = np.flatnonzero(place == number)
        if not len(rows):
            continue
        arrays = {'tokens': encoded['tokens'][rows, :, :width], 'length': encoded['length'][rows]}
        examples = ArraySource('sentences', arrays, np.full(len(rows), -1, np.int32), kind=TEXT)
        for layer, features in embed(examples, np.arange(len(rows))).items():
            if layer not in found:
                found[layer] = np.zeros((len(sentences), features.shape[1]), np.float32)
            found[layer][rows] = features
    return found


def training_texts(train: Source) -> list[str] | None:
    """The texts of at most `CORPUS` training examples, a fixed random subset; None where the source has no texts."""
    rows = np.sort(np.random.default_rng(0).permutation(len(train))[:CORPUS])
    return train.display(rows)


def tf_idf(sentences: Sequence[str], corpus: Sequence[str] | None) -> Any:
    """TF-IDF of the words of N sentences: a sparse matrix [N, W] with rows of length 1, or 0 without words.

    Words are sequences of letters and digits, in lower case. A word that occurs n times counts 1 + ln n, times its
    inverse document frequency ln((1 + documents) / (1 + documents with it)) + 1 (scikit-learn's smooth one).

    Args:
      sentences: N of them.
      corpus: the documents; None for the sentences themselves.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    documents = sentences if corpus is None else corpus
    counter = CountVectorizer(token_pattern=r'(?u)\b\w+\b', dtype=np.float64)
    counts = counter.fit_transform([*sentences, *([] if corpus is None else corpus)])
    weights = TfidfTransformer(sublinear_tf=True).fit(counts[-len(documents) :])
    return weights.transform(counts[: len(sentences)]).tocsr()
