"""Counts the arithmetic and the collectives of a program on one device in its jaxpr; a loop counts each iteration."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

KINDS = {
    'psum': 'all-reduce',
    'pmax': 'all-reduce',
    'pmin': 'all-reduce',
    'all_gather': 'all-gather',
    'reduce_scatter': 'reduce-scatter',
    'ppermute': 'collective-permute',
    'all_to_all': 'all-to-all',
}
"""XLA's names of the collectives of `jax.lax`."""
PASSES = {jax.lax.Precision.HIGHEST: 6, jax.lax.Precision.HIGH: 3}
"""How many bfloat16 passes of a TPU's matrix unit a float32 product needs; one at the default precision."""


class Cost(NamedTuple):
    """The cost of a program on one device.

    Attributes:
      flops: the operations of matrix products and convolutions; a multiplication and an addition count as two.
      passes: these operations, but each float32 operation counts once for each pass that a TPU needs.
      collectives: for each kind, its `count` and the `bytes` of the results.
      reads: how many matrix products have the given table as an operand.
      repeated_reads: how many of these are in further iterations of a loop.
    """

    flops: int
    passes: int
    collectives: dict[str, dict[str, int]]
    reads: int
    repeated_reads: int


def count(jaxpr: Any, platform: str, table: tuple[int, int] | None = None) -> Cost:
    """Counts the cost of a jaxpr on 'cpu', 'gpu' or 'tpu'. A `shard_map` counts as the cost of one device.

    A condition counts as its most expensive branch. The body of a loop whose length depends on data counts once.

    Args:
      jaxpr: the jaxpr of a traced program.
      platform: decides between branches for different platforms.
      table: the shape of a matrix, such as the keys of a queue, whose products are counted as `reads`, also when
        it is transposed.
    """
    total = _count(jaxpr, platform, table)
    kinds = sorted({kind for name, kind in total if name == 'count'})
    collectives = {kind: {name: total[name, kind] for name in ('count', 'bytes')} for kind in kinds}
    reads, written = total['reads', ''], total['written', '']
    return Cost(total['flops', ''], total['passes', ''], collectives, reads, reads - written)


def _count(jaxpr: Any, platform: str, table: tuple[int, int] | None) -> Counter[tuple[str, str]]:
    total: Counter[tuple[str, str]] = Counter()
    for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name in ('dot_general', 'conv_general_dilated'):
            flops = _product_flops(equation)
            total['flops', ''] += flops
            total['passes', ''] += flops * _passes(equation)
            if table and any(sorted(operand.aval.shape) == sorted(table) for operand in equation.invars):
                total['reads', ''] += 1
                total['written', ''] += 1
        elif name in KINDS:
            total['count', KINDS[name]] += 1
            total['bytes', KINDS[name]] += sum(
                math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in equation.outvars
            )
        elif name == 'cond':
            branches = [_count(branch, platform, table) for branch in _branches(params, platform)]
            total.update(max(branches, key=lambda found: (found['flops', ''], sum(found.values()))))
        else:
            for part in _jaxprs(params):
                for key, value in _count(part, platform, table).items():
                    total[key] += value * (1 if key[0] == 'written' else params.get('length', 1))
    return total


def _product_flops(equation: Any) -> int:
    """The operations of a product or convolution, without those on the zeros of a dilated input."""
    left, right = (variable.aval.shape for variable in equation.invars)
    results = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        return 2 * results * math.prod(left[i] for i in contracted)
    features = right[equation.params['dimension_numbers'].rhs_spec[0]]
    return 2 * results * math.prod(right) // features // math.prod(equation.params['lhs_dilation'])


def _passes(equation: Any) -> int:
    precision = equation.params['precision']
    of_left = precision[0] if isinstance(precision, tuple) else precision
    return PASSES.get(of_left, 1) if equation.invars[0].aval.dtype == 'float32' else 1


def _branches(params: dict[str, Any], platform: str) -> list[Any]:
    """The branches of a condition that may run on a platform."""
    platforms = params.get('branches_platforms') or [None] * len(params['branches'])
    for branch, names in zip(params['branches'], platforms, strict=True):
        if names is not None and platform in names:
            return [branch]
    return [branch for branch, names in zip(params['branches'], platforms, strict=True) if names is None]


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for part in value if isinstance(value, tuple) else (value,):
            if hasattr(part, 'eqns') or hasattr(getattr(part, 'jaxpr', None), 'eqns'):
                yield part
