"""Devices: one per-device step mapped by `jax.pmap` or `jax.shard_map`, and the two forms of the state.

Outside the mapped step a state is *global*: arrays without a device axis, replicated except for the slots of a sharded
queue. Checkpoints, evaluation and hashes use this form. Inside the loop the state is in the mapper's own form and is
donated from step to step. A tree of `PartitionSpec`, or a single one for the whole state, describes how a state is
placed on the devices.
"""

import math
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dualcl_jax.system.errors import UserError, listed
from dualcl_jax.system.processes.agreement import from_all
from dualcl_jax.system.tree import Tree

AXIS = 'batch'
"""Name of the mapped axis; each device on it holds its part of the global batch."""
Specs = Any
REPLICATED = PartitionSpec()
Step = Callable[[Tree, Tree], tuple[Tree, Tree]]


class Mapper(Protocol):
    """How one per-device step runs on every device of every process."""

    mesh: Mesh

    def map(self, step: Step) -> Any:
        """Maps the step over all devices, jitted, with its state donated."""
        ...

    def lower(self, step: Step, state: Tree, batch: Tree) -> jax.stages.Lowered:
        """Lowers the mapped step for the shapes of a global state and of a global batch [B, ...]."""
        ...

    def compile(self, step: Step, state: Tree, batch: Tree) -> Any:
        """Compiles the mapped step for such shapes, if that is possible before the first call."""
        ...

    def put_batch(self, batch: Tree) -> Tree:
        """Spreads the rows of this process, NumPy [n_local * b, ...], over its devices."""
        ...

    def put_state(self, state: Tree) -> Tree:
        """Converts a global state to the mapper's form."""
        ...

    def global_state(self, state: Tree) -> Tree:
        """Converts the mapper's form to global arrays; a copy where the mapped form has a device axis."""
        ...


def device_mesh() -> Mesh:
    """A mesh of all devices of all processes along one axis `AXIS`; the devices of a process are adjacent.

    Every process must call it.

    Raises:
      UserError: the processes have different numbers of devices.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    counts = Counter(device.process_index for device in devices)
    apart = [index for index in counts if counts[index] != counts[0]]
    if apart:
        hosts = from_all('hosts', socket.gethostname())
        each = [f'{counts[index]} in process {index} on {hosts[index]}' for index in (0, *apart[:3])]
        raise UserError(
            f'the processes have different numbers of devices: {listed(each, len(apart) + 1)}\n'
            'give each process the same number, or leave out the hosts that have fewer'
        )
    return Mesh(np.asarray(devices), (AXIS,))


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Positions in the global batch that this process loads, int64, in the order of its devices."""
    share = batch_size // mesh.devices.size
    owned = [i for i, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    return np.concatenate([np.arange(i * share, (i + 1) * share) for i in owned])


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Replicates host or single-device arrays, equal in every process, to every device of the mesh."""
    return place(tree, mesh, REPLICATED)


def place(tree: Tree, mesh: Mesh, specs: Specs) -> Tree:
    """Places host or single-device arrays, equal in every process, on the mesh as `specs` describe."""

    def put(spec: PartitionSpec, leaf: Any) -> jax.Array:
        on_host = np.asarray(leaf)
        return jax.make_array_from_callback(on_host.shape, NamedSharding(mesh, spec), lambda part: on_host[part])

    return _map(put, specs, tree)


def shapes(tree: Tree, mesh: Mesh, specs: Specs) -> Tree:
    """Shape, dtype and sharding of every leaf of a global tree."""

    def describe(spec: PartitionSpec, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return _map(describe, specs, tree)


def bytes_per_device(described: Tree) -> int:
    """Bytes per device of a tree of `shapes`."""
    leaves = jax.tree.leaves(described)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def gathered(tree: Tree) -> Tree:
    """A global tree of which every device holds every leaf whole. Every process must call it."""

    def gather(leaf: jax.Array) -> jax.Array:
        if leaf.is_fully_replicated:
            return leaf
        assert isinstance(leaf.sharding, NamedSharding)
        return jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, REPLICATED))

    return jax.tree.map(gather, tree)


def to_host(tree: Tree) -> Tree:
    """Copies a replicated or single-device tree to NumPy arrays; with a device axis, the first device's part."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data), tree)


def fetched(results: Iterable[Tree]) -> Iterator[Tree]:
    """Copies results to NumPy arrays, each after the next one was taken, so that the devices work in the meantime."""
    before: list[Tree] = []
    for result in results:
        if before:
            yield jax.tree.map(np.asarray, before.pop())
        before.append(result)
    for result in before:
        yield jax.tree.map(np.asarray, result)


def _map(function: Callable[[PartitionSpec, Any], Any], specs: Specs, tree: Tree) -> Tree:
    """Applies the function to each leaf and its spec."""
    return jax.tree.map(lambda spec, part: jax.tree.map(partial(function, spec), part), specs, tree)


class PmapMapper:
    """`jax.pmap` with a leading device axis on state and batch: [n, ...], or [n, K/n, ...] for sharded arrays."""

    def __init__(self, mesh: Mesh, specs: Specs = REPLICATED) -> None:
        self.mesh = mesh
        self._specs = specs
        self._local = NamedSharding(Mesh(np.asarray(mesh.local_devices), (AXIS,)), PartitionSpec(AXIS))

    def map(self, step: Step) -> Any:
        return jax.pmap(step, axis_name=AXIS, devices=list(self.mesh.devices), donate_argnums=0)

    def lower(self, step: Step, state: Tree, batch: Tree) -> jax.stages.Lowered:
        def stack(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            assert leaf.sharding is not None
            return jax.ShapeDtypeStruct((self.mesh.size, *leaf.sharding.shard_shape(leaf.shape)), leaf.dtype)

        rows = shapes(batch, self.mesh, PartitionSpec(AXIS))
        return self.map(step).lower(*jax.tree.map(stack, (shapes(state, self.mesh, self._specs), rows)))

    def compile(self, step: Step, state: Tree, batch: Tree) -> Any:
        if jax.process_count() > 1:  # pmap takes each process's part, but the lowered program does not
            return self.map(step)
        return self.lower(step, state, batch).compile()

    def put_batch(self, batch: Tree) -> Tree:
        devices = len(self.mesh.local_devices)
        split = jax.tree.map(lambda rows: rows.reshape(devices, -1, *rows.shape[1:]), batch)
        return jax.device_put(split, self._local)

    def put_state(self, state: Tree) -> Tree:
        def stack(leaf: jax.Array) -> jax.Array:
            parts = [shard.data[None] for shard in leaf.addressable_shards]
            shape = (len(parts), *parts[0].shape[1:])
            return jax.make_array_from_single_device_arrays(shape, self._local, parts)

        return jax.tree.map(stack, state)

    def global_state(self, state: Tree) -> Tree:
        def unstack(spec: PartitionSpec, leaf: jax.Array) -> jax.Array:
            parts = [shard.data[0] for shard in leaf.addressable_shards]
            shape = leaf.shape[1:] if spec == REPLICATED else (self.mesh.size * leaf.shape[1], *leaf.shape[2:])
            return jax.make_array_from_single_device_arrays(shape, NamedSharding(self.mesh, spec), parts)

        return _map(unstack, self._specs, state)


class ShardMapMapper:
    """`jax.jit(jax.shard_map(...))` of a global state, without vma checks, which would average gradients twice."""

    def __init__(self, mesh: Mesh, specs: Specs = REPLICATED) -> None:
        self.mesh = mesh
        self._specs = specs
        self._rows = NamedSharding(mesh, PartitionSpec(AXIS))

    def map(self, step: Step) -> Any:
        mapped = jax.shard_map(
            step,
            mesh=self.mesh,
            in_specs=(self._specs, PartitionSpec(AXIS)),
            out_specs=(self._specs, REPLICATED),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0)

    def lower(self, step: Step, state: Tree, batch: Tree) -> jax.stages.Lowered:
        rows = shapes(batch, self.mesh, PartitionSpec(AXIS))
        return self.map(step).lower(shapes(state, self.mesh, self._specs), rows)

    def compile(self, step: Step, state: Tree, batch: Tree) -> Any:
        return self.lower(step, state, batch).compile()

    def put_batch(self, batch: Tree) -> Tree:
        return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(self._rows, rows), batch)

    def put_state(self, state: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.copy(), state)

    def global_state(self, state: Tree) -> Tree:
        return state


MAPPERS: dict[str, Callable[..., Mapper]] = {'pmap': PmapMapper, 'shard_map': ShardMapMapper}


def default_mapper(num_processes: int) -> str:
    """The name of the mapper for a run of this many processes; both give the same states.

    In several processes, `jax.pmap` wraps every leaf of the state again in each step, in Python: 709 leaves cost the
    host about seven times as long as with `jax.shard_map` (`experiments/results/mappers.json`).

    Example:
      >>> default_mapper(1), default_mapper(2)
      ('pmap', 'shard_map')
    """
    return 'pmap' if num_processes == 1 else 'shard_map'
