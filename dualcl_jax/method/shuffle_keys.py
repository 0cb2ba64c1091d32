"""Shuffled keys (1911.05722, §3.3): each key is encoded among other images than its query.

Batch statistics would otherwise tell which key belongs to which query. MoCo gathers the images of all devices and draws
a permutation of them. Here it is a fixed one, as the data order is random already, and it lets each device send every
image once and receive as many: b images on the way instead of the whole batch. Ours.
"""

import jax
import jax.numpy as jnp
import numpy as np


def destinations(batch: int, groups: int, parts: int = 1) -> np.ndarray:
    """Where each row of a batch goes that consists of equal groups, one after the other: int64 [B].

    Row r of a group moves r groups on, and is row r there. So rows of one group meet in no other, or, where a group has
    more rows than there are groups, evenly in all of them. Where a batch is taken in parts
    (`dualcl_jax.method.accumulate`), a group's rows in one part are a group of their own, and this holds for them.
    """
    group, row = np.divmod(np.arange(batch), batch // groups)
    return (group + row // parts) % groups * (batch // groups) + row


def exchange(values: jax.Array, places: np.ndarray, axis_name: str, axis: int = 0) -> jax.Array:
    """Moves rows between the devices of a mapped axis, each of which has b of B rows.

    Args:
      values: [..., b, ...], rows along `axis`.
      places: `destinations` [B], or their inverse, of the rows of all devices.
      axis_name: of the devices.
      axis: of the rows.
    """
    share = values.shape[axis]
    devices, rows = np.divmod(places.reshape(-1, share), share)
    moves: dict[tuple[int, ...], list[int]] = {}  # rows that go from every device to the same of the others
    for row in range(share):
        moves.setdefault(tuple(devices[:, row].tolist()), []).append(row)
    received = [
        jax.lax.ppermute(jnp.take(values, np.array(own), axis), axis_name, list(enumerate(to)))
        for to, own in moves.items()
    ]
    arrived = rows[0, np.concatenate(list(moves.values()))]  # the same on every device
    return jnp.take(jnp.concatenate(received, axis), np.argsort(arrived), axis)
