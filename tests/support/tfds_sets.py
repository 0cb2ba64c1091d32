"""Prepared TFDS sets, written record by record."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

MODULE = 'tensorflow_datasets.core.features'


def write_prepared(
    folder: Path,
    name: str,
    splits: Mapping[str, Sequence[Mapping[str, bytes | int]]],
    features: Mapping[str, Any],
    classes: Sequence[str],
    file_format: str = 'array_record',
) -> Path:
    """Writes a prepared version of a set into a new folder.

    Args:
      folder: the folder of the version, such as tiny/1.0.0.
      name: the name of the set.
      splits: the examples by split, each with the values of its features.
      features: their descriptions, as in features.json.
      classes: names of the classes of the feature 'label'; written if there is one.
      file_format: the format that the set claims to have.
    """
    folder.mkdir(parents=True)
    infos = []
    for split, examples in splits.items():
        path = folder / f'{name}-{split}.array_record-00000-of-00001'
        writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
        for values in examples:
            example = tf_example_pb2.Example()
            for feature, value in values.items():
                kind = 'bytes_list' if isinstance(value, bytes) else 'int64_list'
                getattr(example.features.feature[feature], kind).value.append(value)
            writer.write(example.SerializeToString())
        writer.close()
        template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
        infos.append({'name': split, 'shardLengths': [str(len(examples))], 'filepathTemplate': template})
    info = {'name': name, 'version': '1.0.0', 'fileFormat': file_format, 'splits': infos}
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    described = {'pythonClassName': f'{MODULE}.features_dict.FeaturesDict', 'featuresDict': {'features': features}}
    (folder / 'features.json').write_text(json.dumps(described))
    if 'label' in features:
        (folder / 'label.labels.txt').write_text(''.join(f'{label}\n' for label in classes))
    return folder
