"""Data sets: examples of any kind, integer labels or none, and a fingerprint. NumPy only."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dualcl_jax.data.tree import describe, leaves, map_tree, num_rows, row_spec
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.tree import Tree

LIMIT_SEED = 0
"""The seed of the subset that data.limit keeps, never that of the run: runs with other seeds use the same examples."""
VALIDATION_SEED = 1
"""The seed of the examples that data.validation_fraction holds out, likewise never that of the run."""


AUTO, GROUPED, STRATIFIED, RANDOM = HOLD_OUTS = ('auto', 'grouped', 'stratified', 'random')
"""Values of data.hold_out. In a new run 'auto' means 'grouped'; a stored run keeps its value."""


class HostViews(Protocol):
    """Views that the host makes of examples for a device, such as random crops; sent to workers by pickle."""

    def prepare(self) -> None:
        """Imports and reads what every process that makes views needs. It must not start a thread."""
        ...

    def blank(self, count: int) -> Tree:
        """Uninitialised arrays [count, ...] for `count` examples."""
        ...

    def make(self, indices: np.ndarray, positions: np.ndarray, seed: int, step: int, out: Tree) -> None:
        """Writes the views of the examples at `indices` [n] into `out`, arrays [n, ...].

        Their randomness depends only on the seed, the step and the `positions` [n] in the global batch.
        """
        ...


class Source(Protocol):
    """A split: N examples with their labels, read by index.

    An example is a pytree of NumPy arrays of fixed shapes and dtypes; n examples are that tree with a leading axis n.
    For images, the tree is one array [n, H, W, C], uint8, uint16 or float32.

    `kind` is the kind of the examples, such as 'images', which determines the views that can be made of them. `labels`
    is int32 [N], -1 where unknown. `class_names[label]` is the name of a class; `class_names` is None if the set has no
    labels. `fingerprint` is the SHA-256 hex digest of whatever determines the examples and their order. `in_memory` is
    whether the examples are in memory; others are read and decoded at each access. `report` describes the files behind
    the set for `data_report.json`, or is None: 'splits', 'labels', 'left_out', 'tokens' and 'pixels', see
    `docs/data.md`, and other entries by other names. `ids` is int32 [N]: for each example, the index of the first
    example that equals it; for images, its own index. Examples with the same id are never each other's negatives.
    `kept_files` is the content, by name, of files that a workdir keeps, so that examples are read the same way again.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...] | None: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def in_memory(self) -> bool: ...
    @property
    def report(self) -> Mapping[str, Any] | None: ...
    @property
    def ids(self) -> np.ndarray: ...
    @property
    def kept_files(self) -> Mapping[str, bytes]: ...
    def __len__(self) -> int: ...
    def examples(self, indices: np.ndarray) -> Tree:
        """Reads the examples at `indices` (integers [n]): arrays [n, ...]; n = 0 gives shapes and dtypes alone."""
        ...

    def display(self, indices: np.ndarray) -> list[str] | None:
        """What identifies each example at `indices` (integers [n]) to a user; None if nothing does.

        It is the text as its author wrote it, or the path of a file of images, relative to the folder of the set.
        """
        ...

    def host_views(self, recipe: Any) -> HostViews | None:
        """The views that the host makes by a recipe of the method's views; None if whole examples are loaded."""
        ...


def example_spec(source: Source, recipe: Any = None) -> Tree:
    """Shapes and dtypes of one example: a tree of `ArraySpec`.

    With a recipe, they are those of the views that the host makes of an example, if it makes any for this source.
    """
    views = source.host_views(recipe) if recipe is not None else None
    return row_spec(source.examples(np.arange(0)) if views is None else views.blank(0))


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A split in memory.

    Args:
      name: the name of the set.
      arrays: the examples, a tree of arrays [N, ...].
      labels: int32 [N], -1 where unknown.
      class_names: the names of the classes, or None without labels.
      fingerprint: SHA-256 hex digest; if left empty, it is computed from everything above.
      report: describes the files behind the split, see `Source`.
      kind: the kind of the examples.
      ids: int32 [N], see `Source`; by default all examples differ.
      kept_files: the files of which the workdir keeps a copy, see `Source`.
      texts: [N], what `display` returns for each example; None for nothing.

    Raises:
      ValueError: labels or ids of another length or type, or arrays without a leading axis in common.
    """

    name: str
    arrays: Tree = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    class_names: tuple[str, ...] | None = None
    fingerprint: str = ''
    report: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)
    kind: str = dataclasses.field(kw_only=True)
    ids: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32), repr=False, kw_only=True)
    kept_files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False, kw_only=True)
    texts: Sequence[str] | None = dataclasses.field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        count = num_rows(self.arrays)
        if not len(self.ids):
            object.__setattr__(self, 'ids', np.arange(count, dtype=np.int32))
        for name, column in (('labels', self.labels), ('ids', self.ids)):
            if column.dtype != np.int32 or column.shape != (count,):
                raise ValueError(f'{name}: expected int32 [{count}], got {column.dtype} {column.shape}')
        if not self.fingerprint:
            shapes = describe(row_spec(self.arrays))
            digest = fingerprint(self.name, shapes, self.class_names, self.labels, *leaves(self.arrays))
            object.__setattr__(self, 'fingerprint', digest)

    @property
    def in_memory(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.labels)

    def examples(self, indices: np.ndarray) -> Tree:
        return map_tree(lambda array: np.take(array, indices, axis=0), self.arrays)

    def display(self, indices: np.ndarray) -> list[str] | None:
        return None if self.texts is None else [self.texts[index] for index in indices.tolist()]

    def host_views(self, recipe: Any) -> None:
        del recipe  # the device makes the views of examples that are in memory


class Splits(NamedTuple):
    """The examples for training and those for measuring; `test` is None if the set has no such split."""

    train: Source
    test: Source | None


def fingerprint(
    name: str,
    shapes: Any,
    class_names: tuple[str, ...] | None,
    labels: np.ndarray,
    *content: np.ndarray | bytes,
) -> str:
    """Computes the SHA-256 hex digest of a split.

    Args:
      name: the name of the set.
      shapes: the shapes of an example, as JSON values, see `tree.describe`.
      class_names: the names of the classes.
      labels: int32 [N].
      content: the bytes of the examples, or what determines them, in order.
    """
    digest = hashlib.sha256(json.dumps([name, shapes, class_names, len(labels)]).encode())
    for part in (labels, *content):
        digest.update(memoryview(np.ascontiguousarray(part)) if isinstance(part, np.ndarray) else part)
    return digest.hexdigest()


def count_classes(labels: Mapping[str, np.ndarray], names: tuple[str, ...] | None) -> dict[str, dict[str, int]] | None:
    """Counts the examples of each class by split; None without classes.

    Args:
      labels: int32 [N] by split, -1 where unknown.
      names: the names of the classes.
    """
    if names is None:
        return None
    counts = {split: np.bincount(found[found >= 0], minlength=len(names)).tolist() for split, found in labels.items()}
    return {name: {split: counts[split][number] for split in labels} for number, name in enumerate(names)}


def limit_indices(num_examples: int, limit: int) -> np.ndarray:
    """The examples that `data.limit` keeps, in the order in which they are kept: int64 [min(limit, N)].

    They are a fixed random subset, the same in every run. With limit 0, or a limit that the set does not exceed,
    all examples are kept in their order.

    Raises:
      UserError: limit is negative.
    """
    if limit < 0:
        raise UserError(f'data.limit={limit}: use 0 for all examples, or the number to keep')
    if limit == 0 or limit >= num_examples:
        return np.arange(num_examples)
    return np.random.default_rng(LIMIT_SEED).permutation(num_examples)[:limit]


def limit_train(train: Source, limit: int) -> Source:
    """The first `limit` examples of a fixed random order of the training split (see `limit_indices`).

    They are in memory if that is not the whole split.
    """
    indices = limit_indices(len(train), limit)
    if len(indices) == len(train):
        return train
    return _some(train, indices, train.name, train.report)


def _some(source: Source, rows: np.ndarray, name: str, report: Mapping[str, Any] | None) -> ArraySource:
    """Copies the examples of a source at `rows`, int [N], to memory, under a name and with a report."""
    return ArraySource(
        name,
        source.examples(rows),
        source.labels[rows],
        source.class_names,
        report=report,
        kind=source.kind,
        ids=first_equal(source.ids[rows]),
        kept_files=source.kept_files,
        texts=source.display(rows),
    )


def first_equal(values: np.ndarray) -> np.ndarray:
    """The index of the first entry that equals each entry of an array [N], int32 [N]: the `ids` of examples.

    Example:
      >>> first_equal(np.array([7, 5, 7, 5, 9])).tolist()
      [0, 1, 0, 1, 4]
    """
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return first[which].astype(np.int32)


def hold_out(train: Source, fraction: float, how: str) -> tuple[Source, Source]:
    """Holds a fixed random share of the training examples out, for validation; both parts are in memory.

    Args:
      train: N examples.
      fraction: share in (0, 1).
      how: 'random', or 'stratified': the same share of every class, as far as numbers allow, and never a whole class.
        Examples without a label count as one class. 'grouped' is 'stratified' over the examples that differ: copies,
        which have the same id, stay together, and have the class of the first one with a label. 'auto' means 'grouped'.

    Returns:
      The remaining examples, and those held out: round(fraction · N) of the N examples, or of those that differ.

    Raises:
      UserError: the examples are not in memory, or one of the parts would be empty.
    """
    if not train.in_memory:
        raise UserError(
            f'data.validation_fraction={fraction}: only examples in memory can be divided; raise data.memory_bytes, '
            'set data.limit, or use 0'
        )
    groups = _groups(train.ids, train.labels, how)
    total = len(groups.labels)
    count = round(fraction * total)
    if not 0 < count < total:
        raise UserError(
            f'data.validation_fraction={fraction}: holds out {count} of the {total} '
            f'{"different " if total < len(train) else ""}training examples of {train.name}; choose a share that '
            'leaves examples in both parts'
        )
    order = np.random.default_rng(VALIDATION_SEED).permutation(total)
    if how != RANDOM:
        order = stratified(order, groups.labels, count)
    chosen = np.zeros(total, bool)
    chosen[order[:count]] = True
    held_out = chosen[groups.of]
    kept_rows, held_out_rows = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    report = _with_validation(train, kept_rows, held_out_rows)
    kept = _some(train, kept_rows, train.name, report)
    return kept, _some(train, held_out_rows, f'{train.name} (validation)', report)


class _Groups(NamedTuple):
    """Examples that are held out together or not at all.

    Attributes:
      of: int [N], the group of each example.
      keys: [G], what the examples of each group have in common.
      labels: int32 [G], the label of the first example of each group that has one, -1 without any.
    """

    of: np.ndarray
    keys: np.ndarray
    labels: np.ndarray


def _groups(keys: np.ndarray, labels: np.ndarray, how: str) -> _Groups:
    """Groups N examples by `keys` [N], which copies have in common; by 'random' and 'stratified' none are copies."""
    if how in (RANDOM, STRATIFIED):
        return _Groups(np.arange(len(keys)), keys, labels)
    distinct, of = np.unique(keys, return_inverse=True)
    known = np.flatnonzero(labels >= 0)[::-1]  # the first one is assigned last
    found = np.full(len(distinct), -1, np.int32)
    found[of[known]] = labels[known]
    return _Groups(of, distinct, found)


def _with_validation(train: Source, kept: np.ndarray, held_out: np.ndarray) -> Mapping[str, Any] | None:
    """The report of a split of which a part is held out, with the counts of the two parts."""
    if train.report is None or 'splits' not in train.report:
        return train.report
    before = train.report['splits']['train']
    folder = f'{before["folder"]}: {len(held_out) / len(train.labels):.3g} of its images, at random'
    splits = {
        'train': before | described_split(before['folder'], train.labels[kept]),
        'validation': described_split(folder, train.labels[held_out]),
    }
    return {**train.report, 'splits': {**train.report['splits'], **splits}}


def described_split(folder: str | None, labels: np.ndarray) -> dict[str, Any]:
    """The entry of a report for a split from a folder, file or array, with labels int32 [N], -1 where unknown."""
    return {'folder': folder, 'images': len(labels), 'labelled': int((labels >= 0).sum())}


def stratified(order: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Reorders N examples so that the first `count` have the classes in their proportions.

    Every class gives its share of the count, rounded down, and the rest comes from the classes with the largest
    remainders. The last example of a class is taken only if there are no others.

    Args:
      order: int [N], a random order.
      labels: int32 [N].
      count: at most N.

    Returns:
      int [N]: the examples taken and then the others, each in their order.
    """
    _, group, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
    exact = count * sizes / len(order)
    quota = np.minimum(np.floor(exact).astype(np.int64), sizes - 1)
    first = np.argsort(group, kind='stable')
    rank = np.empty(len(order), np.int64)  # of an example among those of its class, in the order
    rank[first] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = rank < quota[group]
    # One of each class in turn: largest remainders first, the last of a class after all others.
    turn = np.where(rank == sizes[group] - 1, np.iinfo(np.int64).max, rank - quota[group])
    rest = np.flatnonzero(~taken)
    rest = rest[np.lexsort((rest, (quota - exact)[group[rest]], turn[rest]))][: count - int(taken.sum())]
    taken[rest] = True
    return np.concatenate([order[taken], order[~taken]])


def held_out_by_content(digests: np.ndarray, labels: np.ndarray, fraction: float, how: str) -> np.ndarray:
    """Marks the examples for testing: a share of the labelled ones, chosen by their content.

    Args:
      digests: uint8 [N, 8 or more], the digests of the contents.
      labels: int32 [N], -1 where unknown.
      fraction: the share.
      how: 'random', or 'stratified': keep an example of every class for training, and hold out one of every class whose
        share rounds to at least one. 'grouped' is 'stratified' over the contents that differ: copies stay together,
        also those without a label, and have the class of the first one with a label. 'auto' means 'grouped'.

    Returns:
      bool [N].
    """
    groups = _groups(digests[:, :8].copy().view(np.uint64)[:, 0], labels, how)
    share, labels = groups.keys / 2.0**64, groups.labels
    in_test = (labels >= 0) & (share < fraction)
    if how == RANDOM or not (labels >= 0).any():
        return in_test[groups.of]
    total = np.bincount(labels[labels >= 0])
    tested = np.bincount(labels[in_test], minlength=len(total))
    for label in np.flatnonzero((total > 0) & (tested == total)).tolist():
        members = np.flatnonzero(labels == label)
        in_test[members[np.argmax(share[members])]] = False
    for label in np.flatnonzero((tested == 0) & (np.round(fraction * total) >= 1) & (total > 1)).tolist():
        members = np.flatnonzero(labels == label)
        in_test[members[np.argmin(share[members])]] = True
    return in_test[groups.of]
