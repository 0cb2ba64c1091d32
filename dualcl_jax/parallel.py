"""Devices: one per-device step mapped by `jax.pmap` or `jax.shard_map`, and the two forms of the state.

Outside the mapped step a state is *global*: plain replicated arrays without a device axis, which is what checkpoints,
evaluation and hashes see. Inside the loop it is in the mapper's own form, donated from step to step.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dualcl_jax.method import AXIS

Tree = Any
Step = Callable[[Tree, Tree], tuple[Tree, Tree]]


class Mapper(Protocol):
    """How one per-device step runs on every device of every process."""

    mesh: Mesh

    def map(self, step: Step) -> Step:
        """The step over all devices, jitted, its state donated."""
        ...

    def put_batch(self, batch: Tree) -> Tree:
        """This process's rows, NumPy [n_local * b, ...], spread over its devices."""
        ...

    def put_state(self, state: Tree) -> Tree:
        """A global state in the mapper's form."""
        ...

    def global_state(self, state: Tree) -> Tree:
        """The mapper's form as replicated global arrays; a copy where the mapped form has a device axis."""
        ...


def device_mesh() -> Mesh:
    """All devices of all processes as one axis `AXIS`, each process's devices in a row."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices), (AXIS,))


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Positions in the global batch that this process loads, int64: those of its devices, in their order."""
    share = batch_size // mesh.devices.size
    owned = [i for i, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    return np.concatenate([np.arange(i * share, (i + 1) * share) for i in owned])


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Host or single-device arrays, equal in every process, as global arrays on every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        copies = [jax.device_put(leaf, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(np.shape(leaf), sharding, copies)

    return jax.tree.map(put, tree)


def to_host(tree: Tree) -> Tree:
    """NumPy arrays of a replicated or single-device tree; of one with a device axis, the first device's part."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data), tree)


class PmapMapper:
    """`jax.pmap` with a leading device axis on state and batch."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._local = NamedSharding(Mesh(np.asarray(mesh.local_devices), (AXIS,)), PartitionSpec(AXIS))

    def map(self, step: Step) -> Step:
        return jax.pmap(step, axis_name=AXIS, devices=list(self.mesh.devices), donate_argnums=0)

    def put_batch(self, batch: Tree) -> Tree:
        devices = len(self.mesh.local_devices)
        split = jax.tree.map(lambda rows: rows.reshape(devices, -1, *rows.shape[1:]), batch)
        return jax.device_put(split, self._local)

    def put_state(self, state: Tree) -> Tree:
        def stack(leaf: jax.Array) -> jax.Array:
            parts = [shard.data[None] for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays((len(parts), *leaf.shape), self._local, parts)

        return jax.tree.map(stack, state)

    def global_state(self, state: Tree) -> Tree:
        sharding = NamedSharding(self.mesh, PartitionSpec())

        def unstack(leaf: jax.Array) -> jax.Array:
            parts = [shard.data[0] for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape[1:], sharding, parts)

        return jax.tree.map(unstack, state)


class ShardMapMapper:
    """`jax.jit(jax.shard_map(...))` with replicated state; without vma checks, which would average gradients twice."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._rows = NamedSharding(mesh, PartitionSpec(AXIS))

    def map(self, step: Step) -> Step:
        replicated, rows = PartitionSpec(), PartitionSpec(AXIS)
        mapped = jax.shard_map(
            step, mesh=self.mesh, in_specs=(replicated, rows), out_specs=(replicated, replicated), check_vma=False
        )
        return jax.jit(mapped, donate_argnums=0)

    def put_batch(self, batch: Tree) -> Tree:
        return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(self._rows, rows), batch)

    def put_state(self, state: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.copy(), state)

    def global_state(self, state: Tree) -> Tree:
        return state


MAPPERS: dict[str, Callable[[Mesh], Mapper]] = {'pmap': PmapMapper, 'shard_map': ShardMapMapper}
