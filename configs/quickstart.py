"""The quick start: patches of scikit-image's photographs, labelled by photograph; nothing is downloaded.

    python -m dualcl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

MEASURED
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = 'photo_patches'
    config.views.preset = 'moco_cifar'  # no blur: it would take the texture that tells small patches apart
    config.model.width = 16
    config.model.norm = 'local'
    config.model.projection = 'linear'
    config.model.dtype = 'bfloat16'
    config.loss.temperature = 0.2
    config.queue.size = 2048
    config.optimizer.learning_rate = 0.12
    config.train.epochs = 4
    config.log.every_steps = 5
    config.checkpoint.every_steps = 50
    config.monitor.every_epochs = 1
    config.monitor.k = 20
    return config
