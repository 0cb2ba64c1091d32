"""A run of seconds, for the tests of whole runs: a ResNet of two blocks on a small .npz file.

python -m dualcl_jax.main --config=tests/quick_config.py --config.data.path=FILE --workdir=DIR
"""

from functools import partial

from ml_collections import ConfigDict

from configs import default
from dualcl_jax import models
from dualcl_jax.models.resnet import BasicBlock, ResNet

models.MODELS['resnet6'] = partial(ResNet, (1, 1, 0, 0), BasicBlock)  # before anything reads the table

from dualcl_jax.report import pictures  # noqa: E402

pictures.draw_pictures = lambda *arguments: None  # seconds of every run, and tested elsewhere


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = 'npz'
    config.data.image_size = 8
    config.views.preset = 'moco_cifar'
    config.model.name = 'resnet6'
    config.model.width = 4
    config.model.norm = 'sync'
    config.model.dim = 16
    config.queue.size = 64
    config.optimizer.learning_rate = 0.02
    config.train.batch_size = 32
    config.train.steps = 20
    config.log.every_steps = 1
    config.checkpoint.every_steps = 0
    config.monitor.every_epochs = 0
    config.monitor.k = 20
    return config
