"""Prepares an array_record set for --config.data.name from a stock TFDS set or a folder of images.

    python -m dualcl_jax.prepare --dataset=cifar10 --data_dir=DIR            downloads; needs the extra [prepare]
    python -m dualcl_jax.prepare --dataset=mine --folder=IMAGES --data_dir=DIR

Then: --config.data.name=mine --config.data.data_dir=DIR.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence

from absl import logging

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import UserError, exits_cleanly, first_line

OF_A_FOLDER = ('labels', 'path_column', 'label_column', 'test_fraction', 'max_skipped')
"""Flags that describe a folder of images."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or missing, or has an invalid value."""
    parser = Parser('python -m dualcl_jax.prepare', __doc__)
    parser.add_argument('--dataset', required=True, help='name of a TFDS set, or the name to give to the folder')
    parser.add_argument('--data_dir', required=True, help='TFDS directory to write to')
    parser.add_argument('--folder', help='a local folder of images to pack')
    parser.add_argument('--labels', default='auto', help='labels of the folder, like config.data.labels')
    parser.add_argument('--path_column', default='', help='column of paths in a CSV file, like config.data.path_column')
    parser.add_argument(
        '--label_column', default='', help='column of classes in a CSV file, like config.data.label_column'
    )
    parser.add_argument(
        '--test_fraction',
        type=float,
        default=0.1,
        help='share of labelled images for testing, like config.data.test_fraction',
    )
    parser.add_argument(
        '--max_skipped',
        type=float,
        default=0.05,
        help='share of images that may be unusable, like config.data.max_skipped',
    )
    flags = parser.parse_args(arguments)
    if flags.folder == '':
        parser.error('--folder is empty: name a folder of images, or leave the flag out to prepare a TFDS set')
    given = [name for name in OF_A_FOLDER if getattr(flags, name) != parser.get_default(name)]
    if flags.folder is None and given:
        parser.error(f'--{given[0]}: only for the images of --folder; add --folder, or leave the flag out')
    if not 0 <= flags.test_fraction < 1:
        parser.error(f'--test_fraction={flags.test_fraction}: must be at least 0 and below 1')
    if not 0 <= flags.max_skipped <= 1:
        parser.error(f'--max_skipped={flags.max_skipped}: must be between 0 and 1')
    return flags


def prepare_stock(name: str, data_dir: str) -> str:
    """Downloads and prepares a set with TFDS, and returns its folder.

    Raises:
      UserError: TensorFlow is not installed, TFDS fails, or a version of the set that is already in `data_dir` has
        features that are not part of TFDS.
    """
    if importlib.util.find_spec('tensorflow') is None:
        raise UserError(
            f"--dataset={name}: preparing a TFDS set needs TensorFlow; pip install 'dualcl-jax[prepare]'\n"
            'or prepare it on another machine and copy its folder'
        )
    import tensorflow_datasets as tfds

    from dualcl_jax.data.tfds_folder import check_versions
    from dualcl_jax.system.files import reachable

    folder = str(reachable(data_dir, f'--data_dir={data_dir}'))
    try:
        check_versions(name, folder)  # TFDS opens the versions that exist
        builder = tfds.builder(name, data_dir=folder, file_format='array_record')
        builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:  # TFDS does not document its errors for a bad name, a network or a disk
        raise UserError(f'--dataset={name}: cannot be prepared ({first_line(error)})') from error
    return str(builder.data_path)


def prepare_folder(flags: argparse.Namespace) -> str:
    """Packs the usable images of a folder into a set, and returns the folder of the set."""
    from dualcl_jax.configs import default
    from dualcl_jax.data import Splits
    from dualcl_jax.data.describe import describe_data
    from dualcl_jax.data.images import folder
    from dualcl_jax.data.images.pack import pack, place_of

    data = default.get_config().data
    data.update(path=flags.folder, stored_size=1, **{name: getattr(flags, name) for name in OF_A_FOLDER})
    place_of(flags.dataset, flags.data_dir)  # fails early if the set cannot be written there
    train, test = folder.load_encoded(data)
    for name, fact in describe_data(Splits(train, test)).items():
        print(f'{name}: {fact}')
    return str(pack(flags.dataset, train, test, flags.data_dir))


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    logging.set_verbosity(logging.FATAL)  # TFDS recommends OpenCV, which is not needed
    made = prepare_folder(flags) if flags.folder is not None else prepare_stock(flags.dataset, flags.data_dir)
    print(f'{made}: use it with --config.data.name={flags.dataset} --config.data.data_dir={flags.data_dir}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
