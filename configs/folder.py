"""Your own images: any folder, labelled or not.

    python -m dualcl_jax.main --config=configs/folder.py --config.data.path=DIR --workdir=runs/mine

The full method on a ResNet-18 at 64 pixels, for a first run on any machine. For a larger one, add
--config.data.image_size=224 --config.model.stem=imagenet --config.model.width=64. Time and accuracy depend on the
images.
"""

from ml_collections import ConfigDict

from dualcl_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = 'folder'
    config.data.image_size = 64
    config.model.stem = 'imagenet'
    config.model.width = 32
    config.model.norm = 'local'
    config.model.dtype = 'bfloat16'
    config.loss.temperature = 0.2
    config.train.batch_size = 128
    config.train.epochs = 20
    config.checkpoint.every_steps = 100
    config.monitor.k = 20
    return config
