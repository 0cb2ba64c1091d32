"""The full method on CIFAR-10: dual view, hardest negatives, ResNet-18 with the CIFAR stem.

    python -m dualcl_jax.main --config=configs/cifar10.py --config.data.data_dir=DIR --workdir=runs/cifar10

Time and accuracy at full size (width 64, 200 epochs): unmeasured here.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = 'cifar10'
    config.views.preset = 'moco_cifar'
    config.train.batch_size = 512
    return config
