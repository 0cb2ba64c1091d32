"""Sentences of TFDS sets that are prepared as array_record, read without TensorFlow and without the code of the set."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from etils import epath

from dualcl_jax.data.text.rows import NAMED, NOT_UTF8, Columns, LeftOut, Row, checked, find
from dualcl_jax.data.text.splits import choose_test
from dualcl_jax.data.tfds_folder import TEST_SPLITS, in_chunks, open_folder, records_of, unreadable
from dualcl_jax.system.errors import UserError

OTHER_SPLITS = 'other splits'


def is_prepared(folder: epath.Path) -> bool:
    """Whether a folder is a prepared version of a TFDS set, such as `imdb_reviews/plain_text/1.0.0`."""
    return (folder / 'features.json').exists() and (folder / 'dataset_info.json').exists()


def read_splits(folder: epath.Path, columns: Columns, left_out: LeftOut) -> dict[str, list[Row]]:
    """Reads the rows of the split 'train', and those of a split for testing if there is one.

    That is 'test', or 'validation' if there is no 'test', or if only 'validation' has labels. The columns are features
    of the set.

    Raises:
      UserError: the folder is damaged, not stored as array_record, or lacks the split or a feature.
      RestartError: its records cannot be read now.
    """
    import tensorflow_datasets as tfds  # half a second: only when used

    try:
        builder = open_folder(folder)
        splits = list(builder.info.splits)
        if 'train' not in splits:
            raise UserError(f"data.path={folder}: has no split 'train', only {', '.join(splits)}; name a set with one")
        find(columns, sorted(builder.info.features), folder.parent.name)
        if columns.label and not isinstance(builder.info.features[columns.label], tfds.features.ClassLabel):
            raise UserError(
                f'data.label_column={columns.label}: is no ClassLabel feature of {folder}; name one, or leave it empty'
            )

        def read(split: str, left_out: LeftOut) -> list[Row]:
            return list(_rows(builder, split, columns, left_out))

        train = read('train', left_out)
        tested = choose_test(train, [(name, partial(read, name)) for name in TEST_SPLITS if name in splits], left_out)
        found = {'train': train} | ({} if tested is None else {tested[0]: tested[1]})
        others = [split for split in splits if split not in found]
        if others:
            left_out.reasons[OTHER_SPLITS] = {'count': len(others), 'names': others[:NAMED]}
        return found
    except UserError:
        raise
    except Exception as error:  # TFDS and array_record do not document what a damaged folder raises
        raise unreadable(f'data.path={folder}:', error, 'prepare it again as array_record') from error


def _rows(builder: Any, split: str, columns: Columns, left_out: LeftOut) -> Iterator[Row]:
    records = records_of(builder, split)
    label = builder.info.features[columns.label] if columns.label else None
    for number, record in enumerate(in_chunks(records, range(len(records))), 1):
        values, place = [record[column] for column in columns.names], f'{split}:{number}'
        try:
            values = [value.decode() if isinstance(value, bytes) else value for value in values]
        except UnicodeDecodeError:
            left_out.add(NOT_UTF8, place)
            continue
        if label is not None:
            known = int(record[columns.label])
            values.append(label.int2str(known) if known >= 0 else None)
        yield from checked(values, place, columns, left_out)
