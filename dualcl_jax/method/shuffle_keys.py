"""Shuffled keys (1911.05722, §3.3): each key is encoded in a batch with other images than its query.

Otherwise the batch statistics would reveal which key belongs to which query. MoCo gathers the images of all devices and
draws a random permutation. Here the permutation is fixed, because the data order is random already, and each device
sends and receives b images instead of the whole batch. The fixed permutation is ours.
"""

import jax
import jax.numpy as jnp
import numpy as np


def destinations(batch: int, groups: int, parts: int = 1) -> np.ndarray:
    """The destination of each row of a batch that consists of equal, consecutive groups, int64 [B].

    Row r of a group becomes row r of the group that lies r groups further. So no two rows of a group move to the
    same group. If a group has more rows than there are groups, its rows are spread evenly over all groups. If a batch
    is processed in parts (`dualcl_jax.method.accumulate`), this holds for the rows of a group within each part.
    """
    group, row = np.divmod(np.arange(batch), batch // groups)
    return (group + row // parts) % groups * (batch // groups) + row


def exchange(values: jax.Array, places: np.ndarray, axis_name: str, axis: int = 0) -> jax.Array:
    """Moves rows between the devices of a mapped axis, each of which holds b of the B rows.

    Args:
      values: [..., b, ...], with rows along `axis`.
      places: the `destinations` [B] of the rows of all devices, or their inverse.
      axis_name: the name of the mapped axis.
      axis: the axis of the rows.
    """
    share = values.shape[axis]
    devices, rows = np.divmod(places.reshape(-1, share), share)
    moves: dict[tuple[int, ...], list[int]] = {}  # local rows by their destination on each device
    for row in range(share):
        moves.setdefault(tuple(devices[:, row].tolist()), []).append(row)
    received = [
        jax.lax.ppermute(jnp.take(values, np.array(own), axis), axis_name, list(enumerate(to)))
        for to, own in moves.items()
    ]
    arrived = rows[0, np.concatenate(list(moves.values()))]  # the same on every device
    return jnp.take(jnp.concatenate(received, axis), np.argsort(arrived), axis)
