"""The recipes on CIFAR-100: ResNet-18 with the CIFAR stem.

    python -m dualcl_jax.main --config=configs/cifar100.py:dualcl_v2 --config.data.data_dir=DIR --workdir=runs/cifar100

Recipes, after the colon: moco_v1, moco_v2, moco_v3, dualcl_v1, dualcl_v2 (the default) or dualcl_v3.
Meant for one GPU or TPU chip. Time and accuracy: unmeasured.
"""

from ml_collections import ConfigDict

from dualcl_jax.configs import default
from dualcl_jax.configs.shared import recipes


def get_config(recipe: str = 'dualcl_v2') -> ConfigDict:
    config = default.get_config()
    config.data.name = 'cifar100'
    return recipes.apply(config, recipe)
