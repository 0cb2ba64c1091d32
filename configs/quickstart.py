"""The quick start: patches of scikit-image's photographs, labelled by photograph; nothing is downloaded.

    python -m dualcl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Dual view with the hardest quarter of the queue. Measured once, seed 0, two cores of a Xeon with AVX-512, jax 0.12:
2 min 4 s after installation, 416 images/s; kNN accuracy 72.6 %, raw pixels 33.6 %, random encoder 45.3 %.
"""

from ml_collections import ConfigDict

from dualcl_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = 'photo_patches'
    config.data.image_size = 24  # patches have 32 pixels; 24 halves the work of a step and allows more steps
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.views.preset = 'moco_cifar'
    config.views.crop_scale = (0.3, 1.0)  # a patch is a texture: small crops carry little information
    config.model.width = 16
    config.model.norm = 'local'
    config.loss.temperature = 0.2
    config.queue.size = 2048
    config.optimizer.learning_rate = 0.06
    config.train.batch_size = 128
    config.train.epochs = 6
    config.log.every_steps = 5
    config.checkpoint.every_steps = 50
    config.monitor.every_epochs = 2
    config.monitor.k = 20
    return config
