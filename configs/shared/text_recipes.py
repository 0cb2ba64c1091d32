"""Recipes for tuning or training sentence encoders, as changes of a config; all but `pair` and `crop` are published.

Sizes and rates are the authors' for BERT-base; `docs/text.md` lists what differs from their code. A projection or an
inner layer that is as wide as the encoder remains so with an encoder of another width.
"""

from collections.abc import Callable

from ml_collections import ConfigDict


def simcse(config: ConfigDict) -> None:
    """2104.08821, unsupervised: dropout as the only difference of views, no queue, one epoch."""
    config.views.preset = 'simcse'
    config.text.length = 32
    config.model.name = 'transformer'
    config.model.pooling = 'cls'
    config.model.projection = 'tanh'
    config.model.norm = 'local'
    config.model.dropout = 0.1
    config.loss.temperature = 0.05
    config.loss.symmetric = False
    config.negatives.selector = 'all'
    config.queue.size = 0
    config.ema.momentum = 0.0
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 3e-5
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.clip = 1.0
    config.train.batch_size = 64
    config.train.epochs = 1


def esimcse(config: ConfigDict) -> None:
    """2109.04380: SimCSE with repeated tokens in one view, and a queue of 2.5 batches from a momentum encoder."""
    simcse(config)
    config.views.preset = 'esimcse'
    config.queue.size = 160
    config.ema.momentum = 0.995


def mocose(config: ConfigDict) -> None:
    """2202.13093: dropout views, a predictor on the query side, a small queue, and a low momentum that rises to 1."""
    simcse(config)
    config.model.projection = 'linear'
    config.views.preset = 'mocose'
    config.model.predictor = 'mlp2'
    config.model.head_width = config.model.width
    config.queue.size = 512
    config.queue.init = 'noise'
    config.ema.momentum = 0.75
    config.ema.schedule = 'cosine'
    config.optimizer.weight_decay = 1e-6


def contriever(config: ConfigDict) -> None:
    """2112.09118: MoCo on two random crops of a document, with deleted words; mean pooling, no projection.

    Meant for many GPUs.
    """
    simcse(config)
    config.views.preset = 'contriever'
    config.text.length = 256
    config.model.pooling = 'mean'
    config.model.projection = 'none'
    config.queue.size = 131_072
    config.queue.init = 'noise'
    config.ema.momentum = 0.9995
    config.optimizer.learning_rate = 5e-5
    config.optimizer.weight_decay = 0.01
    config.train.batch_size = 2048
    config.train.steps = 500_000


def pair(config: ConfigDict) -> None:
    """Ours: a query and its passage are the two views; takes minutes on one core for an already good encoder."""
    simcse(config)
    config.views.preset = 'pair'
    config.data.columns = '0,1'
    config.text.length = 64
    config.model.pooling = 'mean'
    config.model.projection = 'none'
    config.model.dropout = 0.0
    config.queue.size = 2048
    config.ema.momentum = 0.99
    config.optimizer.learning_rate = 5e-5
    config.train.batch_size = 32
    config.train.steps = 50


def crop(config: ConfigDict) -> None:
    """Ours: two crops of a passage are the two views; for texts without queries, or after `pair`."""
    pair(config)
    config.views.preset = 'contriever'
    config.data.columns = ''
    config.optimizer.learning_rate = 3e-5
    config.train.steps = 100


def dual_view(config: ConfigDict) -> None:
    """2501.16360 on any of them: both views as query and key, and the hardest quarter of the negatives."""
    config.loss.symmetric = True
    config.negatives.selector = 'auto'
    config.negatives.fraction = 0.25


TEXT: dict[str, Callable[[ConfigDict], None]] = {
    'simcse': simcse,
    'esimcse': esimcse,
    'mocose': mocose,
    'contriever': contriever,
    'pair': pair,
    'crop': crop,
}
NAMES = (*TEXT, *(f'dualcl_{name}' for name in TEXT))


def apply(config: ConfigDict, recipe: str) -> ConfigDict:
    """Applies a recipe of `NAMES` to a config, and returns the config.

    Raises:
      ValueError: the recipe does not exist.
    """
    if recipe not in NAMES:
        raise ValueError(f'recipe {recipe!r}: choose one of {", ".join(NAMES)}')
    TEXT[recipe.removeprefix('dualcl_')](config)
    if recipe.startswith('dualcl_'):
        dual_view(config)
    return config
