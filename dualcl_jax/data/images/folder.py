"""A folder of images, flat or nested, labelled by subfolder, by a CSV file, or not at all."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dualcl_jax.data.images import kinds, left_out, stored
from dualcl_jax.data.images.decode import INVERTED, LATE, MIN_SIDE, SCALED, UNCONVERTED
from dualcl_jax.data.images.display import shown
from dualcl_jax.data.images.encoded import RGB, EncodedSource, Pixels, in_memory_if_small, stored_size
from dualcl_jax.data.images.index import LISTED, Index, copies, mark_duplicates
from dualcl_jax.data.images.index_cache import open_index
from dualcl_jax.data.images.labels import (
    Labels,
    TableLabels,
    UnmatchedError,
    displayed,
    folder_labels,
    no_labels,
    read_labels,
    table_labels,
)
from dualcl_jax.data.images.scan import (
    DUPLICATE,
    IGNORED,
    NOT_TAKEN,
    OTHER_CLASS,
    OUTCOMES,
    SAME_CONTENT,
    SKIPPED,
    USED,
    is_passing,
)
from dualcl_jax.data.images.splits import ABOVE, BESIDE, TEST, TRAIN, Layout, described, find_layout
from dualcl_jax.data.run_cache import run_cache_of
from dualcl_jax.data.source import Splits, described_split, fingerprint, held_out_by_content, limit_indices
from dualcl_jax.system.errors import RestartError, UserError, first_line, listed


@dataclasses.dataclass(frozen=True, eq=False)
class IndexedFiles:
    """Some files of an index, in the order given by `rows`: int [N]."""

    index: Index
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def prepare(self) -> None:
        pass  # the index is in memory

    def read(self, index: int) -> bytes:
        return self.index.read(int(self.rows[index]))

    def where(self, index: int) -> str:
        return shown(os.path.join(self.index.root, self.index.path(int(self.rows[index]))))

    def names(self, indices: np.ndarray) -> list[str]:
        return [self.index.shown(row) for row in self.rows[indices].tolist()]


@dataclasses.dataclass(frozen=True, eq=False)
class _Chosen:
    """The part of an index that is used.

    Attributes:
      index: the index with the final outcomes.
      layout: the splits.
      rows: int32 [N], the images that are used; `roles` int8 [N], `TRAIN` or `TEST`.
      labels: the labels of the rows.
      left_out: rows of other images, by reason.
      unmatched: rows of a table that name no file.
    """

    index: Index
    layout: Layout
    rows: np.ndarray
    roles: np.ndarray
    labels: Labels
    left_out: dict[str, np.ndarray]
    unmatched: Sequence[str]


class Everything(NamedTuple):
    """Examples; and `skipped`, the names of the files that cannot be read as images, with the reason."""

    source: EncodedSource
    skipped: list[str]


def load(data: Any) -> Splits:
    """Loads the images of the folder `data.path`, by `data.labels`, `.test_fraction`, `.limit` and the other fields.

    Folders such as `train` and `val` are the splits, see `splits.find_layout`. Otherwise `data.test_fraction` of the
    labelled images are for testing, chosen by their content, so that a set that grows keeps them. Sets whose central
    squares, `stored_size(data)` pixels a side, fit in `data.memory_bytes` are decoded at once and stay in memory. In
    larger sets, an image is decoded whenever it is used.

    Raises:
      UserError: there is no such folder, it has no images, too many of them cannot be used, or the labels do not fit.
    """
    return in_memory_if_small(data, *load_encoded(data))


def load_encoded(data: Any) -> tuple[EncodedSource, EncodedSource | None]:
    """Loads a folder as `load` does, but decodes no image."""
    chosen = _choose(data, _open(data, data.max_skipped))
    index, rows, labels = chosen.index, chosen.rows, chosen.labels.labels
    in_test = chosen.roles == TEST
    held_out = chosen.layout.test is None and chosen.labels.names is not None and data.test_fraction > 0
    if held_out:
        in_test = held_out_by_content(index.digests[rows], labels, data.test_fraction, data.hold_out)
    kept = np.flatnonzero(~in_test)
    if not len(kept):
        raise UserError(
            f'data.path={data.path}: no image is left for training: all are test images or copies of them; '
            'lower data.test_fraction'
        )
    kept = kept[limit_indices(len(kept), data.limit)]
    size, names, pixels = stored_size(data), displayed(chosen.labels.names), _pixels_of(data, index, rows)
    labels_of = {'train': labels[kept], 'test': labels[in_test]}
    report = index.report() | {
        'splits': _splits_report(chosen, labels_of, data.test_fraction if held_out else 0.0),
        'labels': chosen.labels.how,
        'left_out': left_out.by_reason(index, chosen.left_out, chosen.unmatched),
    }
    if pixels.as_stored:
        report['pixels'] = f'as stored, {pixels.channels} channels of {pixels.dtype}'
    elif mixed := left_out.mixed_depths(index.conversions[rows]):
        report['pixels'] = mixed

    def source(positions: np.ndarray) -> EncodedSource:
        content = [index.digests[rows[positions]]]
        for conversion, name in ((SCALED, b'scaled'), (INVERTED, b'inverted'), (LATE, b'turned')):
            if (index.conversions[rows[positions]] & conversion).any():
                content.append(np.frombuffer(name, np.uint8))  # earlier versions used other pixels of the same files
        if pixels.as_stored:
            content.append(np.frombuffer(b'as stored', np.uint8))
        digest = fingerprint('folder', (size, size, pixels.channels), chosen.labels.names, labels[positions], *content)
        files = IndexedFiles(index, rows[positions])
        return EncodedSource('folder', files, labels[positions], size, names, digest, report, pixels)

    return source(kept), source(np.flatnonzero(in_test)) if in_test.any() else None


def every_image(data: Any) -> Everything:
    """Lists the usable images of the folder `data.path`, copies included: for features, not for training.

    They are in the order of their paths, with labels, without splits.

    Args:
      data: the `data` part of a config, of which `path`, `labels`, the columns of a table, `image_size`,
        `stored_size` and `channels` are used.

    Raises:
      UserError: there is no such folder, it has no images, or the labels do not fit.
    """
    index = _open(data, max_skipped=1.0)
    rows = index.usable()
    labels = _splits_and_labels(data, index, rows)[1]
    size, class_names = stored_size(data), displayed(labels.names)
    pixels = _pixels_of(data, index, rows)
    how = b'as stored' if pixels.as_stored else b''
    shape = (size, size, pixels.channels)
    digest = fingerprint('every', shape, class_names, labels.labels, index.digests[rows], how)
    source = EncodedSource('folder', IndexedFiles(index, rows), labels.labels, size, class_names, digest, pixels=pixels)
    skipped = [f'{index.shown(row)} ({index.notes[row]})' for row in np.flatnonzero(index.outcomes == SKIPPED).tolist()]
    return Everything(source, skipped)


def _open(data: Any, max_skipped: float) -> Index:
    """Opens the index of the folder `data.path`. Raises as `load` does, except for labels."""
    if '://' in data.path:
        raise UserError(f'data.path={data.path}: must be a local folder; copy it, or mount it')
    if not data.path:
        raise UserError('data.path is empty: with data.name=folder, set it to a folder of images')
    index = open_index(os.path.expanduser(data.path), data.channels, run_cache_of(data))
    _check_usable(data, index, max_skipped)
    return index


def _pixels_of(data: Any, index: Index, rows: np.ndarray) -> Pixels:
    """Determines from `data.channels` how the images at `rows` are read.

    Raises:
      UserError: the images are read as stored, and are not all of one type.
    """
    if not data.channels:
        return RGB
    bits, counts = np.unique(index.conversions[rows] & stored.TYPE_MASK, return_counts=True)
    types = [stored.type_of(int(bit)) for bit in bits]
    if len(types) > 1:
        found = ' and '.join(f'{count:,} of {name}' for name, count in zip(types, counts.tolist(), strict=True))
        raise UserError(f'data.path={data.path}: its images are of several types, {found}; convert them to one')
    return Pixels(data.channels, types[0], as_stored=True)


def _check_usable(data: Any, index: Index, max_skipped: float) -> None:
    """Checks that the folder `data.path` has images, and that at most a share `max_skipped` of them cannot be used.

    Raises:
      UserError: the folder has none, too many of them cannot be used, or most are of formats that cannot be read.
      RestartError: it may have enough when those that could not be read for a while are examined again.
    """
    used, skipped = int((index.outcomes == USED).sum()), np.flatnonzero(index.outcomes == SKIPPED)
    share = len(skipped) / max(used + len(skipped), 1)
    passing = [row for row in skipped.tolist() if is_passing(index.notes[row])]
    if passing and (not used or share > max_skipped):
        named = listed((f'{index.shown(row)} {index.notes[row]}' for row in passing[:3]), len(passing), separator='; ')
        raise RestartError(f'data.path={data.path}: {named}\nrun the same command again')
    first = (f'{index.shown(row)} ({index.notes[row]})' for row in skipped[:3].tolist())
    named = listed(first, len(skipped), separator='; ')
    hint = '' if data.channels else _hint(index)
    if used and share > max_skipped:
        raise UserError(
            f'data.path={data.path}: {len(skipped):,} of {used + len(skipped):,} images cannot be used, more than '
            f'config.data.max_skipped={max_skipped:g} of them\n{named}\n'
            f'repair or remove them, or raise that share; data_report.json then names them all{hint}'
        )
    others = _unread_images(index)
    if not used:
        found = ', '.join(f'{(index.outcomes == code).sum():,} {OUTCOMES[code]}' for code in (SKIPPED, IGNORED))
        kinds_found = _reasons(index, np.flatnonzero(index.outcomes == IGNORED))
        raise UserError(
            f'data.path={data.path}: no image of at least {MIN_SIDE} pixels a side in it ({found})'
            + (f'\n{named}' if named else '')
            + (f'\n{kinds_found}{hint}' if kinds_found else hint)
        )
    if len(others) > used:
        raise UserError(
            f'data.path={data.path}: most of its images are in formats that cannot be read\n'
            f'{_reasons(index, others)}; {used:,} can be used\n'
            'convert them to JPEG, PNG or TIFF, or move them elsewhere'
        )


def _hint(index: Index) -> str:
    """A hint on how to read images that are left out for their channels or types; empty if there are none."""
    found = any(reason in note for note in index.notes.values() for reason in (kinds.ARRAY, *UNCONVERTED))
    return '; data.channels=C reads images of C channels as they are stored' if found else ''


def _unread_images(index: Index) -> np.ndarray:
    """The rows of images in formats that are ignored, except raw files beside a photograph of the same name."""
    rows = [row for row, note in index.notes.items() if note in kinds.UNREAD and index.outcomes[row] == IGNORED]
    if not any(index.notes[row] == kinds.RAW for row in rows):
        return np.array(rows, np.int32)
    photos = {os.path.splitext(index.path(row))[0] for row in index.usable().tolist()}
    return np.array([row for row in rows if os.path.splitext(index.path(row))[0] not in photos], np.int32)


def _reasons(index: Index, rows: np.ndarray) -> str:
    """Counts the rows with each note, the most frequent notes first."""
    notes = [left_out.reason_of(index.notes[row]) for row in rows.tolist()]
    counts = sorted(((notes.count(note), note) for note in set(notes)), reverse=True)
    return ', '.join(f'{count:,} × {note}' for count, note in counts[:5])


def _choose(data: Any, index: Index) -> _Chosen:
    """Chooses the splits, the labels, and the images that neither leaves out."""
    rows = index.usable()
    layout, labels, table = _splits_and_labels(data, index, rows)
    roles = layout.roles[index.folder_of[rows]]
    taken = ((roles == TRAIN) | (roles == TEST)) & ~labels.stray
    groups = {'beside the folders of classes': rows[labels.stray]}
    if layout.train:
        splits = ' and '.join(described(folder) for folder in (layout.train, layout.test) if folder is not None)
        groups[f'not in a folder of a split, beside {splits}'] = rows[roles == ABOVE]
        for folder in layout.beside:
            inside = np.array([f'{name}{os.sep}'.startswith(f'{folder}{os.sep}') for name in index.folders])
            chosen = (roles == BESIDE) & inside[index.folder_of[rows]]
            groups[f'in {described(folder)}, beside {splits}'] = rows[chosen]
    if not taken.all():
        index = _without(index, rows, taken, groups)
    index = _with_classes(index, rows[taken], labels.labels[taken], roles[taken])
    kept = taken & (index.outcomes[rows] == USED)
    if table is not None:
        groups['used without a class: no row of the table names it'] = rows[kept & (labels.labels < 0)]
    kept_labels = labels._replace(labels=labels.labels[kept], stray=labels.stray[kept])
    unmatched = table.matches.unmatched if table is not None else []
    return _Chosen(index, layout, rows[kept], roles[kept], kept_labels, groups, unmatched)


def _splits_and_labels(data: Any, index: Index, rows: np.ndarray) -> tuple[Layout, Labels, TableLabels | None]:
    """Finds the splits, the labels by folders or by a table, and that table."""
    counts = np.bincount(index.folder_of[rows], minlength=len(index.folders))
    if data.labels == 'none':
        nothing = np.zeros(len(index.folders), bool)
        layout = find_layout(index.folders, counts, nothing)
        return layout, no_labels(len(rows), 'none (data.labels=none)'), None
    if data.labels in ('auto', 'subfolders'):
        layout = find_layout(index.folders, counts, None)
        labels = folder_labels(data, index, rows, layout)
        try:
            table = None if labels.names is not None else read_labels(data, index, rows)
        except UnmatchedError as error:
            return layout, labels._replace(how=f'{labels.how}; {first_line(error)}'), None
        if table is None:
            return layout, labels, None
    else:
        table = read_labels(data, index, rows)
        assert table is not None
    labels = table_labels(table)
    named = np.bincount(index.folder_of[rows], labels.labels >= 0, minlength=len(index.folders)) > 0
    return find_layout(index.folders, counts, named), labels, table


def _without(index: Index, rows: np.ndarray, taken: np.ndarray, groups: Mapping[str, np.ndarray]) -> Index:
    """Copies the index without the rows that are not taken; searches for duplicates among the others alone."""
    index = dataclasses.replace(index, outcomes=index.outcomes.copy(), notes=dict(index.notes))
    for row in rows.tolist():
        index.notes.pop(row, None)
    index.outcomes[rows] = np.where(taken, USED, NOT_TAKEN)
    for reason, found in groups.items():
        index.notes.update(dict.fromkeys(found[:LISTED].tolist(), reason))
    mark_duplicates(index, rows[taken])
    return index


def _with_classes(index: Index, rows: np.ndarray, labels: np.ndarray, roles: np.ndarray) -> Index:
    """Copies the index, and uses copies with a class in place of copies in the same split that have none.

    A copy that has another class than the one that is used gets a note.
    """
    if not (index.outcomes[rows] == DUPLICATE).any() or not (labels >= 0).any():
        return index
    index = dataclasses.replace(index, outcomes=index.outcomes.copy(), notes=dict(index.notes))
    place = np.empty(len(index), np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    groups: dict[int, list[int]] = {}
    for row, first in copies(index, rows).items():
        groups.setdefault(first, [first]).append(row)
    for first, members in groups.items():
        split = roles[place[first]]
        used = next((row for row in members if labels[place[row]] >= 0 and roles[place[row]] == split), first)
        index.outcomes[used] = USED
        index.notes.pop(used, None)
        for row in members:
            if row != used:
                known = min(labels[place[row]], labels[place[used]]) >= 0
                differs = known and labels[place[row]] != labels[place[used]]
                index.outcomes[row] = DUPLICATE
                index.notes[row] = f'{SAME_CONTENT} {index.shown(used)}' + OTHER_CLASS * bool(differs)
    return index


def _splits_report(chosen: _Chosen, labels: Mapping[str, np.ndarray], fraction: float) -> dict[str, Any]:
    """Reports the folder of each split, the number of its images, and the number of labelled ones."""
    layout, whole = chosen.layout, described(chosen.layout.train)
    if layout.below_classes:
        whole += f', with {described(layout.below_classes)} (move folders of splits above those of classes)'
    from_train = f'{described(layout.train)}: {fraction:.3g} of its labelled images, by their content'
    folders = {
        'train': whole,
        'test': described(layout.test) if layout.test is not None else from_train if fraction else None,
    }
    return {
        split: described_split(folder, labels[split]) for split, folder in folders.items() if folder is not None
    } | {'left_out': [described(folder) for folder in layout.beside]}
