"""Packs the usable images of a folder into array_record, as a TFDS set that needs no TensorFlow to be read."""

import json
import os
import re
from typing import Any

import numpy as np
from etils import epath

from dualcl_jax.data import SOURCES
from dualcl_jax.data.images.encoded import EncodedSource
from dualcl_jax.system.console import progress
from dualcl_jax.system.errors import UserError, reason_of
from dualcl_jax.system.files import reachable

VERSION = '1.0.0'
SHARD_IMAGES = 10_000


def pack(name: str, train: EncodedSource, test: EncodedSource | None, data_dir: str) -> epath.Path:
    """Writes `data_dir/name/1.0.0`: the files as they are, with their labels, `SHARD_IMAGES` to a shard.

    Raises:
      UserError: as `place_of`, or the folder cannot be written.
    """
    folder = place_of(name, data_dir)
    partial = folder.parent / f'{VERSION}.incomplete'
    try:
        if partial.exists():
            partial.rmtree()
        partial.mkdir(parents=True)
        splits = {'train': train} | ({'test': test} if test else {})
        infos = [_write_split(partial, name, split, source) for split, source in splits.items()]
        _write_metadata(partial, name, infos, train.class_names)
        partial.rename(folder)
    except OSError as error:
        raise UserError(
            f'--data_dir={data_dir}: cannot be written ({reason_of(error)}); choose another folder'
        ) from error
    return folder


def place_of(name: str, data_dir: str) -> epath.Path:
    """The folder of a set that is to be packed.

    Raises:
      UserError: TFDS does not take the name, a source of this package has it, or the folder exists already.
    """
    if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
        raise UserError(
            f'--dataset={name}: must consist of lower-case letters, digits and underscores, and begin with a letter'
        )
    if name in SOURCES:
        raise UserError(f'--dataset={name}: data.name={name} reads other data than TFDS sets; choose another name')
    folder = reachable(data_dir, f'--data_dir={data_dir}') / name / VERSION
    if folder.exists():
        raise UserError(f'--data_dir={data_dir}: {folder} already exists; remove it, or choose another --dataset')
    return folder


def _write_split(folder: epath.Path, name: str, split: str, source: EncodedSource) -> dict[str, Any]:
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    shards = np.array_split(np.arange(len(source)), -(-len(source) // SHARD_IMAGES))
    with progress(len(source), f'packing {split}') as advance:
        for number, rows in enumerate(shards):
            path = folder / f'{name}-{split}.array_record-{number:05d}-of-{len(shards):05d}'
            writer = array_record_module.ArrayRecordWriter(os.fspath(path), 'group_size:1')
            for row in rows.tolist():
                example = tf_example_pb2.Example()
                example.features.feature['image'].bytes_list.value.append(source.files.read(row))
                if source.class_names is not None:
                    example.features.feature['label'].int64_list.value.append(int(source.labels[row]))
                writer.write(example.SerializeToString())
                advance()
            writer.close()
    template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    return {'name': split, 'shardLengths': [str(len(rows)) for rows in shards], 'filepathTemplate': template}


def _write_metadata(
    folder: epath.Path, name: str, infos: list[dict[str, Any]], class_names: tuple[str, ...] | None
) -> None:
    import tensorflow_datasets as tfds

    features = {'image': tfds.features.Image()}
    if class_names is not None:
        features['label'] = tfds.features.ClassLabel(names=class_names)
    tfds.features.FeaturesDict(features).save_config(folder)
    info = {'name': name, 'version': VERSION, 'fileFormat': 'array_record', 'splits': infos}
    (folder / 'dataset_info.json').write_text(json.dumps(info, indent=2))
