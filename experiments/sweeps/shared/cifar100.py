"""Settings shared by the sweeps on CIFAR-100: ResNet-18 of width 16 on 24×24 views of 45,000 images.

100 classes instead of 10 mean a tenth of the false negatives. 5,000 training images are held out for validation; what
was tuned on CIFAR-10 (head, crops, batch normalisation) is kept.
"""

from experiments.sweeps.shared import cifar10

CONFIG = cifar10.CONFIG
BASE = (
    *cifar10.UNTUNED,
    'data.name=cifar100',
    'data.mean=(0.5071,0.4865,0.4409)',
    'data.std=(0.2673,0.2564,0.2762)',
    *cifar10.LARGE,
    'monitor.every_epochs=4',
)
