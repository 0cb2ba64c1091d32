"""Fashion-MNIST: dual view with the hardest quarter of the queue. Views of one channel skip hue, saturation, grayscale.

    python -m dualcl_jax.main --config=configs/fashion_mnist.py --config.data.data_dir=DIR --workdir=runs/fashion_mnist

Time and accuracy: unmeasured here.
"""

from ml_collections import ConfigDict

from dualcl_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = 'fashion_mnist'
    config.data.image_size = 28
    config.views.preset = 'moco_cifar'
    config.model.width = 32
    config.train.epochs = 50
    return config
