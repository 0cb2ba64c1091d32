"""MoCo's CIFAR recipe at batch 256, the baseline: one-way, all negatives, a linear head, a queue filled with noise.

    python -m dualcl_jax.main --config=configs/cifar10_moco.py --config.data.data_dir=DIR --workdir=runs/cifar10_moco

At width 16 on 20,000 images for 10 epochs (--config.model.width=16 --config.data.limit=20000 --config.train.epochs=10
--config.monitor.bank=0), seeds 0, 1 and 2, on two cores of a Xeon, jax 0.12: backbone kNN 45.7, 46.1 and 45.5 %.
The demo of MoCo's authors has batch 512, 8 groups of batch statistics and shuffled keys. With these, in bfloat16
(--config.train.batch_size=512 --config.model.norm=split:8 --config.loss.shuffle_keys=True
--config.model.dtype=bfloat16), at width 64 for 200 epochs on one H100: kNN on the projection 83.2 %, backbone 81.2 %,
published 82.6 %; conditions: `experiments/results/gpu/README.md`.
"""

from ml_collections import ConfigDict

from dualcl_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2023, 0.1994, 0.2010)
    config.views.preset = 'moco_cifar'
    config.model.norm = 'local'
    config.model.projection = 'linear'
    config.loss.symmetric = False
    config.negatives.selector = 'all'
    config.negatives.mask_same_image = False
    config.queue.init = 'noise'
    config.optimizer.decay_norm_and_bias = True
    return config
