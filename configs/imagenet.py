"""The recipes on ImageNet-1k: ResNet-50, or ViT-S/16, at the sizes of the papers.

    python -m dualcl_jax.main --config=configs/imagenet.py:dualcl_v2 --config.data.data_dir=DIR --workdir=runs/imagenet

Recipes, after the colon: moco_v1, moco_v2, moco_v3, dualcl_v1, dualcl_v2 (the default), dualcl_v3, moco_v3_vit or
dualcl_v3_vit.
Meant for 8 GPUs (v1, v2) and 16 or a TPU pod slice (v3, batch 4,096). Time and accuracy: unmeasured.
"""

from ml_collections import ConfigDict

from dualcl_jax.configs import default
from dualcl_jax.configs.shared import recipes


def get_config(recipe: str = 'dualcl_v2') -> ConfigDict:
    config = default.get_config()
    config.data.name = 'imagenet2012'
    config.data.image_size = 224
    config.model.name = 'resnet50'
    config.model.stem = 'imagenet'
    config.model.dtype = 'bfloat16'
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return recipes.apply(config, recipe, large=True)
