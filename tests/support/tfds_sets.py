"""Prepared TFDS sets, written record by record."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from ml_collections import ConfigDict
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from tests.support.config_parts import data_config

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


def config(name: str = 'tiny', data_dir: Path | str = '', **changes: Any) -> ConfigDict:
    """The `data` part of a config for such a set."""
    return data_config(name=name, data_dir=str(data_dir), **changes)


def image_feature(*dimensions: int, dtype: str = 'uint8') -> dict[str, Any]:
    """The description of a feature with images, as in features.json."""
    return {
        'pythonClassName': 'tensorflow_datasets.core.features.image_feature.Image',
        'image': {'dtype': dtype, 'shape': {'dimensions': [str(size) for size in dimensions]}},
    }


LABEL = {
    'pythonClassName': 'tensorflow_datasets.core.features.class_label_feature.ClassLabel',
    'classLabel': {'numClasses': '3'},
}


def write_set(root: Path, splits: dict, features: dict, file_format: str = 'array_record') -> Path:
    """Writes a prepared TFDS folder `tiny/1.0.0` in `root`; `splits` maps a name to its (image array, label) pairs."""

    def values(pixels: np.ndarray, label: int) -> dict[str, bytes | int]:
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, 'PNG')
        return {'image': file.getvalue()} | ({'label': label} if 'label' in features else {})

    rows = {split: [values(*example) for example in found] for split, found in splits.items()}
    write_prepared(root / 'tiny' / '1.0.0', 'tiny', rows, features, ('ant', 'bee', 'cat'), file_format)
    return root


def examples(count: int, *shape: int, seed: int = 0) -> list[tuple[np.ndarray, int]]:
    """Random images with labels."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, shape, np.uint8), int(rng.integers(3))) for _ in range(count)]


COLOUR = {'image': image_feature(4, 5, 3), 'label': LABEL}
