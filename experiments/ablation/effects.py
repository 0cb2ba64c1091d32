"""Main effects of the factors of a factorial sweep: more runs contribute to an effect than to any single arm."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.ablation.records import Record, by_seed
from experiments.ablation.statistics import Estimate, estimate


class Effect(NamedTuple):
    """The main effect of one level of a factor instead of the baseline's level.

    Attributes:
      level, instead_of: names of the levels.
      pairs: number of pairs of arms that differ only in this; their differences are averaged seed by seed.
      values: the effect on each metric, over the seeds that all these arms share; None if there is no such seed.
    """

    level: str
    instead_of: str
    pairs: int
    values: list[Estimate | None]


def effects(sweep: dict[str, Any], records: Sequence[Record], metrics: Sequence[str]) -> list[Effect]:
    """Main effects of all levels of the arms that have levels, except where no pair of arms differs only in a level.

    Only seeds are independent: with n of them an interval has n - 1 degrees of freedom, however many pairs there are.
    """
    names = {tuple(arm['levels']): arm['name'] for arm in sweep['arms'] if arm['levels']}
    baseline = next(tuple(arm['levels']) for arm in sweep['arms'] if arm['name'] == sweep['baseline'])
    found = []
    for place, usual in enumerate(baseline):
        for level in dict.fromkeys(levels[place] for levels in names if levels[place] != usual):
            others = {levels: (*levels[:place], usual, *levels[place + 1 :]) for levels in names}
            pairs = [(names[a], names[b]) for a, b in others.items() if a[place] == level and b in names]
            if not pairs:
                continue
            values = [estimate(_differences(records, pairs, metric)) for metric in metrics]
            found.append(Effect(level, usual, len(pairs), values))
    return found


def _differences(records: Sequence[Record], pairs: Sequence[tuple[str, str]], metric: str) -> list[float]:
    """The mean difference over the pairs, for each seed that all their arms share."""
    values = [(by_seed(records, arm, metric), by_seed(records, other, metric)) for arm, other in pairs]
    seeds = set.intersection(*(set(own) & set(other) for own, other in values))
    return [statistics.mean(own[seed] - other[seed] for own, other in values) for seed in sorted(seeds)]
