"""Draws a contact sheet of the views that a config makes, without training."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dualcl_jax.data import Source, data_config, load
from dualcl_jax.data.images.statistics import channel_statistics, values_in_use
from dualcl_jax.data.order import epoch_permutation
from dualcl_jax.method import randomness
from dualcl_jax.method.choices import TYPICAL_IMAGES, Machine, fill, is_gray
from dualcl_jax.method.validation import validate
from dualcl_jax.method.views.images import ImageViews, image_views
from dualcl_jax.reports.figures import view_pairs
from dualcl_jax.reports.visible import visible
from dualcl_jax.system.errors import UserError, reason_of
from dualcl_jax.system.files import reachable
from dualcl_jax.system.kinds import IMAGES

SHOWN = 10


def show_views(config: ConfigDict, path: str) -> None:
    """Draws the first images of a run's first batch, each above its views at that step, into a PNG file.

    Raises:
      UserError: the config, the data or the path has a mistake that the user can correct.
    """
    validate(config)
    if not path.endswith('.png'):
        raise UserError(f'--show_views={path}: name a file that ends in .png')
    machine = Machine(jax.default_backend(), jax.device_count())
    train = load(data_config(fill(config, TYPICAL_IMAGES, machine))).train
    if train.kind != IMAGES:
        raise UserError(f'--show_views={path}: {train.name} holds {train.kind}; only views of images can be drawn')
    values = values_in_use(config.data, train)
    gray = not config.data.mean and is_gray(channel_statistics(train, values))
    config = fill(config, len(train), machine, gray=gray)
    config.data.value_range = values
    ids = epoch_permutation(config.seed, 0, len(train))[:SHOWN]
    recipe = image_views(config, train.examples(np.arange(0)))
    views = visible(first_views(train, ids, recipe, config.seed), stretch=bool(recipe.value_range))
    try:
        file = reachable(path, f'--show_views={path}')
        file.parent.mkdir(parents=True, exist_ok=True)
        view_pairs(visible(train.examples(ids)), views, file)
    except OSError as error:
        raise UserError(f'--show_views={path}: cannot be written ({reason_of(error)}); choose another path') from error
    print(f'{len(ids)} images and their views are in {path}')


def first_views(train: Source, ids: np.ndarray, views: ImageViews, seed: int) -> np.ndarray:
    """The views of the images `ids` [n] as the first of the batch of step 0, float32 [2, n, size, size, C]."""
    rows = np.arange(len(ids))
    crops = train.host_views(views.host_recipe)
    if crops is None:
        images = train.examples(ids)
    else:
        images = crops.blank(len(ids))
        crops.make(ids, rows, seed, 0, images)
    keys = randomness.example_keys(seed, randomness.VIEWS, jnp.zeros((), jnp.int32), jnp.asarray(rows, jnp.int32))
    return np.asarray(jax.jit(views.augment)(keys, images))
