"""Counts arithmetic and collectives in programs for which the counts are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from dualcl_jax.training.cost import Cost, count

HIGHEST = jax.lax.Precision.HIGHEST


def of(function, *arguments, platform='cpu') -> Cost:
    return count(jax.jit(function).trace(*arguments).jaxpr, platform)


def test_products_in_loops_and_branches() -> None:
    a, b = jnp.ones((3, 5)), jnp.ones((5, 5), jnp.bfloat16)
    product = partial(jnp.matmul, precision=HIGHEST)

    def program(a, b, choose):
        a = jax.lax.scan(lambda a, _: (product(a, b.astype(a.dtype)), None), a, length=7)[0]
        b = jax.lax.cond(choose, lambda b: b @ b @ b, lambda b: b @ b, b)
        return jax.checkpoint(lambda a: a @ a.T)(a), jax.lax.while_loop(lambda b: b.sum() < 9, lambda b: b @ b, b)

    in_loop, in_branch, plain, while_ = 7 * 2 * 3 * 5 * 5, 2 * 2 * 5**3, 2 * 3 * 5 * 3, 2 * 5**3
    cost = of(program, a, b, jnp.bool_(True))
    assert cost.flops == in_loop + in_branch + plain + while_
    assert cost.passes == 6 * in_loop + in_branch + plain + while_
    assert cost.collectives == {}


@pytest.mark.parametrize('stride', [1, 2])
def test_convolution_and_its_gradients(stride: int) -> None:
    """Each gradient costs as much as the convolution; zeros between the rows of a strided one do not count."""
    x, kernel = jnp.ones((2, 16, 16, 3)), jnp.ones((3, 3, 3, 8))

    def conv(x, kernel):
        padding = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    forward = 2 * 2 * (16 // stride) ** 2 * 8 * 9 * 3
    assert of(conv, x, kernel).flops == forward
    gradients = of(jax.grad(lambda x, kernel: (conv(x, kernel) ** 2).sum(), (0, 1)), x, kernel)
    assert gradients.flops == 3 * forward


def test_reads_of_a_table() -> None:
    """Each product with it counts once, transposed or not, and each iteration of a loop; other products do not."""
    table, rows = jnp.ones((7, 5)), jnp.ones((12, 5))

    def program(table, rows):
        def block(rows):
            return (rows @ table.T) @ table + rows @ rows.T @ rows

        return jax.lax.map(block, rows.reshape(4, 3, 5)).reshape(12, 5) @ table.T

    assert of(program, table, rows).reads == 0
    cost = count(jax.jit(program).trace(table, rows).jaxpr, 'cpu', table.shape)
    assert (cost.reads, cost.repeated_reads) == (2 * 4 + 1, 2 * 3)


def test_only_the_platforms_own_branch_counts() -> None:
    def program(a):
        return jax.lax.platform_dependent(a, cpu=lambda a: a @ a @ a, default=lambda a: a @ a)

    a = jnp.ones((4, 4))
    assert of(program, a).flops == 2 * of(program, a, platform='tpu').flops == 4 * 4**3


def test_collectives_of_one_device() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ('i',))

    def program(x):  # [2, 3] of [8, 3]
        gathered = jax.lax.all_gather(x, 'i', tiled=True)
        back = jax.lax.psum_scatter(gathered, 'i', tiled=True)
        moved = jax.lax.ppermute(x, 'i', [(0, 1), (1, 0), (2, 3), (3, 2)])
        sums = jax.lax.scan(lambda x, _: (jax.lax.pmean(x, 'i'), None), x, length=5)[0]
        return back + moved + sums + jax.lax.pmax(x, 'i')

    rows = PartitionSpec('i')
    cost = of(jax.shard_map(program, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False), jnp.ones((8, 3)))
    assert cost.collectives == {
        'all-gather': {'count': 1, 'bytes': 8 * 3 * 4},
        'all-reduce': {'count': 6, 'bytes': 6 * 2 * 3 * 4},
        'collective-permute': {'count': 1, 'bytes': 2 * 3 * 4},
        'reduce-scatter': {'count': 1, 'bytes': 2 * 3 * 4},
    }
