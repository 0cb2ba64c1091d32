"""CIFAR-10: dual view with the hardest quarter of the queue, ResNet-18 with the CIFAR stem.

    python -m dualcl_jax.main --config=configs/cifar10.py --config.data.data_dir=DIR --workdir=runs/cifar10

Choose a recipe after a colon, as in configs/cifar10.py:moco_v3: moco_v1, moco_v2, moco_v3, dualcl_v1, dualcl_v2 or
dualcl_v3. Time and accuracy: unmeasured; `experiments/results/gpu/README.md` has a similar run.
"""

from ml_collections import ConfigDict

from dualcl_jax.configs import default
from dualcl_jax.configs.shared import recipes


def get_config(recipe: str = '') -> ConfigDict:
    config = default.get_config()
    config.data.name = 'cifar10'
    config.views.preset = 'moco_cifar'
    config.train.batch_size = 512
    return recipes.apply(config, recipe) if recipe else config
