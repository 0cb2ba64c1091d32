"""Your own images: any folder, labelled or not.

    python -m dualcl_jax.main --config=configs/folder.py --config.data.path=DIR --workdir=runs/mine

Dual view with the hardest quarter of the queue, ResNet-18. The fields of `dualcl_jax.method.choices.OPEN` are open: the
run chooses batch, queue, learning rate, temperature, preset and size of the views, stem, width, dtype, length and how
often it measures, from the number of images, whether they are gray, and the devices. It prints what it chose and stores
it. Any of them can be set.
For a larger network on larger views, add --config.data.image_size=224 --config.model.stem=imagenet
--config.model.width=64. docs/how_to/own_images.md has measurements.
"""

from ml_collections import ConfigDict

from dualcl_jax.configs import default
from dualcl_jax.method.choices import leave_open


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = 'folder'
    config.model.norm = 'local'
    config.monitor.k = 20
    leave_open(config)
    return config
