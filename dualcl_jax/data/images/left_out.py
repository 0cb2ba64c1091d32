"""What was left out of a folder of images, for reports and headers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualcl_jax.data.images.decode import AS_8, AS_12, GRAY, SIXTEEN_BIT
from dualcl_jax.data.images.display import shown
from dualcl_jax.data.images.index import Index
from dualcl_jax.data.images.scan import DUPLICATE, NOT_TAKEN, OTHER_CLASS, SAME_CONTENT, USED, is_passing

NAMED = 3
"""The number of files that are named for each reason."""

UNMATCHED = 'rows of the table that name no file'

_SIZE = re.compile(r'[\d,]+×[\d,]+ pixels: ')


def by_reason(index: Index, groups: Mapping[str, np.ndarray], unmatched: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Lists the files that are not used: for each reason their number, and the names of up to `NAMED`.

    Args:
      index: an index with the final outcomes.
      groups: further rows, by reason.
      unmatched: names in rows of a table that match no file.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in np.flatnonzero((index.outcomes != USED) & (index.outcomes != NOT_TAKEN)).tolist():
        reason = reason_of(index.notes[row])
        if index.outcomes[row] == DUPLICATE:
            reason = f'{SAME_CONTENT} another file' + OTHER_CLASS * index.notes[row].endswith(OTHER_CLASS)
        entry = found.setdefault(reason, {'count': 0, 'names': []})
        entry['count'] += 1
        if len(entry['names']) < NAMED:
            entry['names'].append(index.shown(row))
    for reason, rows in groups.items():
        if len(rows):
            found[reason] = {'count': len(rows), 'names': [index.shown(row) for row in rows[:NAMED].tolist()]}
    if unmatched:
        found[UNMATCHED] = {'count': len(unmatched), 'names': [shown(name) for name in unmatched[:NAMED]]}
    return found


def unread(report: Mapping[str, Any] | None) -> str:
    """The first file in the report of a source that could not be read for a while, with the reason; empty if none."""
    found = ((file['path'], file['reason']) for file in (report or {}).get('files', ()))
    return next((f'{path} {reason}' for path, reason in found if is_passing(reason)), '')


def mixed_depths(conversions: np.ndarray) -> str:
    """Says how gray images of more than 8 bits are scaled if they are taken for images of different depths, else ''.

    Args:
      conversions: those of the images that are used, see `Index`.
    """
    gray = conversions & GRAY > 0
    counts = {8: gray & (conversions & AS_8 > 0), 12: gray & (conversions & AS_12 > 0)}
    counts[16] = gray & (conversions & SIXTEEN_BIT > 0)
    found = [f'{int(rows.sum()):,} of {bits}' for bits, rows in counts.items() if rows.any()]
    if len(found) < 2:
        return ''
    return (
        f'gray of more than 8 bits, each scaled by the bits that its largest value needs: {" and ".join(found)} bits; '
        'if one camera took them, use --config.data.channels=1, which scales all alike'
    )


def reason_of(note: str) -> str:
    """The kind of reason that a note gives, without the details of its file."""
    return _SIZE.sub('', note).partition(':')[0]
