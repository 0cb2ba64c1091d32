"""Describes in words how a data set was interpreted."""

from collections.abc import Mapping, Sequence
from typing import Any

from dualcl_jax.data.source import Splits
from dualcl_jax.system.kinds import IMAGES, TEXT

SHOWN_CLASSES = 5
"""The number of class names that are listed."""
MANY_UNKNOWN = 0.05
"""The share of unknown tokens from which a tokenizer does not fit the text."""


def units(kind: str) -> str:
    """The plural noun for examples of a kind, such as images."""
    return 'examples of text' if kind == TEXT else kind


def noun(kind: str) -> str:
    """The shortest plural noun for examples of a kind: images, or examples."""
    return IMAGES if kind == IMAGES else 'examples'


def baseline_name(kind: str) -> str:
    """What an encoder's features are compared with: the examples of a kind themselves, as vectors."""
    return {IMAGES: 'raw pixels', TEXT: 'bag of words'}.get(kind, 'raw values')


def describe_data(splits: Splits) -> dict[str, str]:
    """Describes the splits, the classes and what was left out, as far as the set reports it, one fact per line."""
    report = splits.train.report or {}
    facts = {}
    if 'splits' in report:
        taken = {name: about for name, about in report['splits'].items() if name != 'left_out'}
        unit = noun(splits.train.kind)
        facts['splits'] = '; '.join(f'{name}: {_split(about, unit)}' for name, about in taken.items())
    if report.get('labels'):
        names = list(splits.train.class_names or ())
        facts['classes'] = (
            f'{len(names):,}: {_listed(names[:SHOWN_CLASSES], len(names))}; ' if names else ''
        ) + report['labels']
    if 'pixels' in report:
        facts['pixels'] = report['pixels']
    if 'tokens' in report:
        tokens = report['tokens']
        facts['tokens'] = (
            f'{tokens["vocabulary"]:,}, {tokens["tokenizer"]}; {tokens["length"]} for each sentence: '
            f'{tokens["cut"]:.1%} of the sentences are cut, {tokens["padding"]:.1%} of the tokens are padding, '
            f'{tokens["unknown"]:.1%} of those of the text are unknown'
        )
        if tokens['unknown'] >= MANY_UNKNOWN:
            facts['unknown tokens'] = (
                'warning: the encoder sees the same token for all words that the tokenizer does not have; name a '
                'tokenizer for this language with --config.text.tokenizer'
            )
    if 'in_other_pairs' in report:
        shares = report['in_other_pairs']
        facts['in other pairs'] = (
            f'{shares["first"]:.1%} of the first and {shares["second"]:.1%} of the second sentences; such pairs may be '
            "each other's negatives"
        )
    if report.get('left_out'):
        facts['left out'] = '; '.join(
            f'{about["count"]:,} {reason} ({_listed(about["names"], about["count"])})'
            for reason, about in report['left_out'].items()
        )
    return facts


def _split(about: Mapping[str, Any], unit: str) -> str:
    return f'{about["folder"]} ({about["images"]:,} {unit}, {about["labelled"]:,} labelled)'


def _listed(names: Sequence[str], count: int) -> str:
    """Joins the first of `count` names."""
    return ', '.join(names) + (', …' if count > len(names) else '')
