"""Opens prepared TFDS folders without importing the modules that their files name, and reads their records.

`features.json` names the class of each feature, and TFDS imports the module of a class that it does not know. A folder
is therefore opened only if all its features are those of TFDS itself.
"""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from dualcl_jax.system.errors import RestartError, UserError, first_line, is_temporary
from dualcl_jax.system.files import matching

CHUNK = 256
"""Records that are read at a time. Encoded images may have megabytes."""
TEST_SPLITS = ('test', 'validation')
"""Splits for testing, in the order of preference, if all of them or none have labels."""
FILES = ('features.json', 'dataset_info.json')
"""The files of a prepared folder that can describe features."""
CLASS_FIELDS = ('pythonClassName', 'python_class_name', 'type')
"""The fields that name a class, in both spellings of the format and in the one before TFDS 4."""
DAMAGE = re.compile(
    'corrupt|invalid|data_?loss|not_?found|no such file|at least 64KB|permission|denied|unauthenticated', re.IGNORECASE
)
"""How array_record says that a file is damaged, is missing or may not be read."""


def open_folder(folder: epath.Path) -> Any:
    """Opens the TFDS builder of a prepared folder `NAME/VERSION` or `NAME/CONFIG/VERSION`.

    Raises:
      UserError: a feature is not one of TFDS's own.
      Exception: the folder is damaged; TFDS does not document the types.
    """
    import tensorflow_datasets as tfds

    check_features(folder)
    return tfds.builder_from_directory(folder)


def class_names_of(builder: Any) -> tuple[str, ...] | None:
    """The names of the classes that the feature 'label' of a builder stands for; None if it is of another kind."""
    import tensorflow_datasets as tfds

    label = dict(builder.info.features.items()).get('label')
    return tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else None


def records_of(builder: Any, split: str, *encoded: str) -> Any:
    """The records of a split, in which the features `encoded` are not decoded."""
    import tensorflow_datasets as tfds

    decoders = dict.fromkeys(encoded, tfds.decode.SkipDecoding())
    return builder.as_data_source(split, decoders=decoders, file_format='array_record')


def in_chunks(records: Any, rows: Sequence[int]) -> Iterator[Any]:
    """Yields the records at some rows, of which `CHUNK` are in memory at a time."""
    for start in range(0, len(rows), CHUNK):
        yield from records.__getitems__(list(rows[start : start + CHUNK]))


def unreadable(what: str, error: Exception, remedy: str) -> UserError:
    """The exception for records that cannot be read, such as the record or the split `what`.

    It is a `RestartError` if the storage or this machine may have failed for a while: array_record raises a bare
    RuntimeError, and only its text says what happened.
    """
    problem = f'{what} cannot be read ({first_line(error)})'
    said = str(error).partition('; opening ')[0]  # a path follows
    if is_temporary(error) or (type(error) is RuntimeError and not DAMAGE.search(said)):
        return RestartError(f'{problem}; run the same command again')
    return UserError(f'{problem}; {remedy}')


def check_features(folder: epath.Path) -> None:
    """Checks that a prepared folder, which may lack any file, names no feature class but TFDS's own.

    Raises:
      UserError: it names another class.
      OSError, ValueError, RecursionError: a file cannot be read, or is not JSON.
    """
    for file in FILES:
        path = folder / file
        if not path.exists():
            continue
        for name in _class_names(json.loads(path.read_text())):
            if name not in _own_classes():
                raise UserError(
                    f'{path}: uses the feature class {name[:100]!r}, which is not part of TFDS '
                    'and was not imported; prepare the set with TFDS features only'
                )


def check_versions(name: str, data_dir: str) -> None:
    """Applies `check_features` to every version of a set in a TFDS directory.

    Args:
      name: the name of the set, as TFDS parses it: 'name', 'name/config' or 'name:version'.
      data_dir: the directory, which may be missing.

    Raises:
      UserError: a version names a class that is not TFDS's own, or `name` has a namespace: TFDS imports its code.
      OSError, ValueError, RecursionError: the name or a file is not valid.
    """
    from tensorflow_datasets.core import naming

    parsed, _ = naming.parse_builder_name_kwargs(name)
    if parsed.namespace:
        raise UserError(
            f'{name}: the namespace {parsed.namespace!r} is third-party code; use a set that is part of TFDS'
        )
    patterns = [f'{depth}/{file}' for depth in ('*', '*/*', '*/*/*') for file in FILES]  # epath has no **
    found = matching(epath.Path(data_dir) / parsed.name, *patterns)
    for folder in sorted({path.parent for path in found}):
        check_features(folder)


def _class_names(value: Any) -> Iterator[str]:
    """The names of all classes in parsed JSON, also within text that is JSON itself, as TFDS nests it."""
    if isinstance(value, dict):
        for field, entry in value.items():
            if field in CLASS_FIELDS and isinstance(entry, str):
                yield entry
            else:
                yield from _class_names(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _class_names(entry)
    elif isinstance(value, str) and value.lstrip()[:1] in ('{', '['):
        try:
            nested = json.loads(value)
        except ValueError:  # text
            return
        yield from _class_names(nested)


@functools.cache
def _own_classes() -> frozenset[str]:
    """The names under which TFDS writes the classes of `tfds.features`, today and in earlier versions."""
    import tensorflow_datasets as tfds

    connector = tfds.features.FeatureConnector
    classes = [kind for kind in vars(tfds.features).values() if isinstance(kind, type) and issubclass(kind, connector)]
    names = {f'{kind.__module__}.{kind.__name__}' for kind in classes}
    return frozenset(names.union(*(getattr(kind, 'ALIASES', ()) for kind in classes)))
