"""The recipes as changes of a config: MoCo v1, v2 and v3, and the dual view with hard negatives on top of each.

`large` means ImageNet with ResNet-50; there every number is from the paper or its published code. For small images the
method is the same, and sizes and rates are those of MoCo's published CIFAR demo (ResNet-18, batch 512, queue 4,096,
learning rate .06, decay 5e-4, 200 epochs, momentum .99, τ .1). Other v3 settings there (LARS batch and rate) are this
project's choice.

The loss is the mean over view orders. MoCo v3 sums the two, so its gradients are twice ours. The steps of AdamW are the
same but for its ε. LARS adds the decay before it scales the step of a kernel to the kernel's norm: ours is the step of
the sum with twice the decay (2e-6). Biases and normalisation scales, which LARS does not scale, take half its steps.
"""

from collections.abc import Callable

from ml_collections import ConfigDict


def moco_v1(config: ConfigDict, *, large: bool) -> None:
    """1911.05722, §3 and §4.1: one-way, all keys of the queue, a linear head, shuffled keys, a step schedule."""
    config.views.preset = 'moco_v1'
    config.model.norm = 'local'
    config.model.projection = 'linear'
    config.loss.symmetric = False
    config.loss.shuffle_keys = True
    config.negatives.selector = 'all'
    config.negatives.mask_same_image = False
    config.queue.init = 'noise'
    config.ema.schedule = 'constant'
    config.optimizer.name = 'sgd'
    config.optimizer.schedule = 'step'
    config.optimizer.momentum = 0.9
    config.optimizer.decay_norm_and_bias = True
    config.train.epochs = 200
    config.loss.temperature = 0.07 if large else 0.1
    config.queue.size = 65_536 if large else 4096
    config.ema.momentum = 0.999 if large else 0.99
    config.optimizer.learning_rate = 0.03 if large else 0.06
    config.optimizer.reference_batch = config.train.batch_size = 256 if large else 512
    config.optimizer.weight_decay = 1e-4 if large else 5e-4
    if not large:
        config.model.norm = 'split:8'  # as in the demo, 8 groups stand in for 8 GPUs; keys are shuffled among them


def moco_v2(config: ConfigDict, *, large: bool) -> None:
    """2003.04297: v1 with an MLP head, stronger views, a cosine schedule, and τ .2."""
    moco_v1(config, large=large)
    config.views.preset = 'moco_v2'
    config.model.projection = 'mlp'
    config.optimizer.schedule = 'cosine'
    if large:
        config.loss.temperature = 0.2


def moco_v3(config: ConfigDict, *, large: bool) -> None:
    """2104.02057, §3 and §A: no queue, both orders, a predictor, LARS, warm-up, momentum rising to 1; 100 epochs."""
    config.views.preset = 'moco_v3'
    config.model.norm = 'sync'
    config.model.projection = 'mlp2_bn'
    config.model.predictor = 'mlp2'
    config.model.dim = 256
    config.model.head_width = 4096 if large else 1024
    config.loss.temperature = 1.0 if large else 0.2
    config.loss.two_tau = True
    config.loss.symmetric = True
    config.negatives.selector = 'all'
    config.negatives.mask_same_image = False
    config.queue.size = 0
    config.ema.momentum = 0.99
    config.ema.schedule = 'cosine'
    config.optimizer.name = 'lars'
    config.optimizer.lars = 'auto'
    config.optimizer.learning_rate = 0.6
    config.optimizer.reference_batch = 256
    config.optimizer.schedule = 'cosine'
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-6
    config.optimizer.decay_norm_and_bias = False
    config.optimizer.warmup_epochs = 10.0
    config.train.batch_size = 4096 if large else 512
    config.train.epochs = 100 if large else 200


def moco_v3_vit(config: ConfigDict, *, large: bool) -> None:
    """2104.02057, §4 and §5: v3 with ViT-S/16, AdamW, a three-layer projection, a frozen patch projection."""
    if not large:
        raise ValueError('recipe moco_v3_vit: patches of 16 pixels need images of 224; use it with imagenet.py')
    moco_v3(config, large=large)
    config.views.crop_scale = (0.08, 1.0)
    config.model.name = 'vit_s16'
    config.model.projection = 'mlp3_bn'
    config.model.predictor = 'mlp2_bn'
    config.model.freeze_patches = True
    config.loss.temperature = 0.2
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.weight_decay = 0.1
    config.optimizer.decay_norm_and_bias = True
    config.optimizer.warmup_epochs = 40.0
    config.train.epochs = 300


def dual_view(config: ConfigDict) -> None:
    """2501.16360 on any of them: both views as query and key, the hardest quarter, no older keys of the same image."""
    config.loss.symmetric = True
    config.negatives.selector = 'auto'
    config.negatives.fraction = 0.25
    config.negatives.mask_same_image = True
    config.queue.init = 'empty'


MOCO: dict[str, Callable[..., None]] = {'v1': moco_v1, 'v2': moco_v2, 'v3': moco_v3, 'v3_vit': moco_v3_vit}
NAMES = tuple(f'{family}_{version}' for family in ('moco', 'dualcl') for version in MOCO)


def apply(config: ConfigDict, recipe: str, *, large: bool = False) -> ConfigDict:
    """Applies a recipe of `NAMES` to a config, and returns the config.

    Raises:
      ValueError: the recipe does not exist or needs large images.
    """
    if recipe not in NAMES:
        raise ValueError(f'recipe {recipe!r}: choose one of {", ".join(NAMES)}')
    family, _, version = recipe.partition('_')
    MOCO[version](config, large=large)
    if family == 'dualcl':
        dual_view(config)
    return config
