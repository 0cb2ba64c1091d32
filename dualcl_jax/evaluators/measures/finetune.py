"""Fine-tuning: the whole backbone and a linear classifier on it, trained with labels."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from dualcl_jax.data import Batch, Loader, Source
from dualcl_jax.data.order import steps_per_epoch
from dualcl_jax.evaluators.embed import Blocks
from dualcl_jax.evaluators.measures.layer_rates import scale_by_layer
from dualcl_jax.evaluators.measures.rows import members
from dualcl_jax.method import randomness
from dualcl_jax.method.build import Method
from dualcl_jax.method.optim import build_optimizer, learning_rate_schedule
from dualcl_jax.method.views import Views
from dualcl_jax.method.views.images import ImageViews, ViewSpec
from dualcl_jax.models.encoder import Encoded, Encoder, Variables
from dualcl_jax.system.devices import AXIS, to_host


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hyperparameters of fine-tuning.

    Attributes:
      epochs: passes over the images.
      batch_size: global, clamped to the number of images.
      optimizer: a name in `dualcl_jax.method.optim.OPTIMIZERS`.
      learning_rate: peak of the classifier's learning rate, with linear warm-up and cosine decay to 0.
      weight_decay: applied to kernels.
      layer_decay: factor between the learning rates of consecutive layers, see `layer_rates`.
      warmup: share of the steps in the warm-up.
      crop_scale: range of the share of the area that a random crop keeps.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    layer_decay: float
    warmup: float
    crop_scale: tuple[float, float]

    def steps(self, num_images: int) -> int:
        """Number of steps for this many images."""
        return self.epochs * steps_per_epoch(num_images, min(self.batch_size, num_images))


class Tuned(NamedTuple):
    """A fine-tuned network: variables of the encoder, and the classifier's kernel [F, C] and bias [C]."""

    variables: Variables
    kernel: jax.Array
    bias: jax.Array


def tuning_views(views: ImageViews, crop_scale: tuple[float, float]) -> ImageViews:
    """One view per image: a random crop, with the flip probability of the first of `views`."""
    spec = ViewSpec(
        flip=views.specs[0].flip, crop_scale=crop_scale, jitter_probability=0.0, grayscale=0.0, blur_probability=0.0
    )
    return dataclasses.replace(views, specs=(spec,))


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """A step of fine-tuning.

    Attributes:
      encoder: computes batch statistics over the whole batch.
      views: views of the examples; the first one is used.
      optimizer: optimizer of backbone, kernel and bias.
      untuned: parameters of the other parts of the encoder. A call needs them, but the scores do not depend on them.
      seed: for the views.
    """

    encoder: Encoder
    views: Views
    optimizer: optax.GradientTransformation
    untuned: Any
    seed: int

    def __call__(self, state: Any, index: jax.Array, batch: Batch) -> Any:
        """Returns the next (parameters, batch statistics, optimizer state)."""
        params, batch_stats, opt_state = state
        keys = randomness.example_keys(self.seed, randomness.FINETUNE, index, batch.positions)
        view = jax.tree.map(lambda leaf: leaf[0], self.views.make(keys, batch.examples))
        gradients, batch_stats = jax.grad(self._loss, has_aux=True)(params, batch_stats, view, batch.labels)
        updates, opt_state = self.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state

    def _loss(self, params: Any, batch_stats: Variables, view: Any, labels: jax.Array) -> tuple[jax.Array, Variables]:
        """Mean cross-entropy, float32 [], and the new running statistics."""
        variables = {'params': self.untuned | {'backbone': params['backbone']}, 'batch_stats': batch_stats}
        encoded, updated = self.encoder.apply(variables, view, train=True, mutable=['batch_stats'])
        found = scores(encoded.backbone, params['kernel'], params['bias'])
        loss = optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()
        return loss, updated.get('batch_stats', {})


def train_classifier(
    method: Method,
    mesh: Mesh,
    variables: Variables,
    images: Source,
    num_classes: int,
    recipe: Recipe,
    *,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Tuned:
    """Trains backbone and classifier on labelled images with a cross-entropy loss.

    All parameters of the backbone are trained, including the patch projection of a ViT, which `model.freeze_patches`
    freezes during pre-training only. Batch statistics are computed over the whole batch, and each image is augmented by
    `tuning_views`. Order and crops are functions of the seed, and so is the result.

    Args:
      method: the method of a run on images.
      mesh: devices; a batch is split over them if their number divides it.
      variables: variables of the encoder to start from; they are not modified.
      images: source in which every image has a label in [0, num_classes).
      num_classes: C.
      recipe: hyperparameters.
      seed: for order and crops.
      advance: called after each step.

    Returns:
      The fine-tuned network.
    """
    assert isinstance(method.views, ImageViews)
    batch_size, total = min(recipe.batch_size, len(images)), recipe.steps(len(images))
    encoder = method.encoder.clone(groups=1, span=1, axis_name=None, freeze_patches=False)
    views = method.views
    optimizer = build_optimizer(
        recipe.optimizer,
        learning_rate_schedule(recipe.learning_rate, total, int(recipe.warmup * total)),
        momentum=0.9,
        weight_decay=recipe.weight_decay,
        decay_norm_and_bias=False,
    )
    if recipe.layer_decay != 1:
        optimizer = optax.chain(optimizer, scale_by_layer(recipe.layer_decay))
    untuned = {part: tree for part, tree in variables['params'].items() if part != 'backbone'}
    step = jax.jit(_Step(encoder, tuning_views(views, recipe.crop_scale), optimizer, untuned, seed), donate_argnums=0)

    features = jax.eval_shape(lambda: Encoded(*encoder.apply(variables, views.blank(), train=False))).backbone.shape[1]
    params = {
        'backbone': variables['params']['backbone'],
        'kernel': jnp.zeros((features, num_classes)),
        'bias': jnp.zeros(num_classes),
    }
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(AXIS)) if batch_size % mesh.devices.size == 0 else everywhere
    state = jax.tree.map(jnp.copy, (params, variables['batch_stats']))  # the first step donates their buffers
    state = jax.device_put((*state, optimizer.init(params)), everywhere)
    loader = Loader(
        images,
        rows=np.arange(batch_size),
        seed=seed,
        batch_size=batch_size,
        start_step=0,
        stop_step=total,
        place=lambda batch: jax.device_put(batch, rows),
    )
    with loader as batches:
        for index, batch in enumerate(batches):
            state = step(state, jnp.int32(index), batch)
            jax.block_until_ready(state[0]['bias'])
            advance()
    params, batch_stats, _ = state
    tuned = {'params': untuned | {'backbone': params['backbone']}, 'batch_stats': batch_stats}
    return Tuned(tuned, params['kernel'], params['bias'])


def scores(features: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Scores float32 [N, C] of features float32 [N, F]."""
    return jnp.matmul(features, kernel, precision=jax.lax.Precision.HIGHEST) + bias[None]


def predict_classes(embed: Blocks, tuned: Tuned, images: Source, rows: NDArray, advance: Callable[[], None]) -> NDArray:
    """Predicts the class of each image at `rows`, int [N].

    Args:
      embed: an `Embedder`.
      tuned: the fine-tuned network.
      images: source of the images.
      rows: their indices.
      advance: called after each block of images.

    Returns:
      Classes, int32 [N].
    """
    features = embed(tuned.variables, images, rows, advance).backbone
    kernel, bias = to_host((tuned.kernel, tuned.bias))
    return np.asarray(jnp.argmax(scores(jnp.asarray(features), kernel, bias), axis=1), np.int32)


def balanced_rows(labels: NDArray, share: float, seed: int) -> NDArray[np.int64]:
    """Indices of a random share of the examples, balanced over classes, with at least one example per class.

    Args:
      labels: integers [N].
      share: in (0, 1], of N. A class with too few examples contributes all of them.
      seed: for the choice.

    Returns:
      Sorted indices, int64 [M].
    """
    rng, classes = np.random.default_rng(seed), np.unique(labels)
    each = max(1, round(share * len(labels) / len(classes)))
    return np.sort(np.concatenate([rng.permutation(rows)[:each] for rows in members(labels, classes)]))
