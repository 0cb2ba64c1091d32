"""The embeddings and running statistics of encoders whose examples interact, against separate calls of the encoder."""

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from configs import default
from dualcl_jax.method.build import Method
from dualcl_jax.method.encode import encode_keys
from dualcl_jax.method.shuffle_keys import destinations
from dualcl_jax.method.state import create_train_state
from dualcl_jax.models.encoder import Variables
from dualcl_jax.system.devices import AXIS
from tests.support.methods import image_method
from tests.support.steps import BATCH, SIDE, TOTAL_STEPS, tiny

VIEWS = np.random.default_rng(3).normal(size=(2, BATCH, SIDE, SIDE, 3)).astype(np.float32)


def create(**fields: object) -> tuple[Method, Variables]:
    """A method with batch statistics in its projection, on one device, and the variables of its momentum encoder."""
    config = tiny(default.get_config(), 40, model__projection='mlp2_bn', model__head_width=8, **fields)
    method = image_method(config, total_steps=TOTAL_STEPS, steps_per_epoch=1, num_devices=1)
    return method, create_train_state(method).momentum_variables


def encoded(method: Method, variables: Variables) -> tuple[np.ndarray, Variables]:
    """The keys of `VIEWS`, and the new running statistics."""
    mesh, whole = Mesh(np.array(jax.devices()[:1]), (AXIS,)), PartitionSpec()
    step = jax.shard_map(
        lambda variables, views: encode_keys(method, variables, views),
        mesh=mesh, in_specs=(whole, whole), out_specs=(whole, whole), check_vma=False,
    )  # fmt: skip
    return jax.tree.map(np.array, jax.jit(step)(variables, VIEWS))


def group_of(method: Method, variables: Variables, images: np.ndarray) -> tuple[np.ndarray, Variables]:
    """The embeddings of images in one group of the encoder itself, and the new running statistics."""
    alone = method.encoder.clone(groups=1, span=1, axis_name=None)
    found, updated = jax.jit(lambda *a: alone.apply(*a, train=True, mutable=['batch_stats']))(variables, images)
    projection = np.array(found.projection)
    return projection / np.linalg.norm(projection, axis=1, keepdims=True), jax.tree.map(np.array, updated)


def test_shuffled_keys_see_other_statistics() -> None:
    """Each key has the statistics of the group to which it was moved."""
    method, variables = create(loss__shuffle_keys=True, model__norm='split:2')
    keys, _ = encoded(method, variables)
    rows = np.argsort(destinations(BATCH, 2)).reshape(2, -1)  # the images of each group
    assert rows.tolist() == [[0, 5, 2, 7], [4, 1, 6, 3]]
    for view, images in enumerate(VIEWS):
        for group in rows:
            expected, _ = group_of(method, variables, images[group])
            np.testing.assert_allclose(keys[view, group], expected, rtol=1e-4, atol=1e-5)


def test_parts_of_a_batch_follow_each_other() -> None:
    """Each view of each part is a group, and the running statistics of one part are those that the next one begins."""
    method, variables = create(train__accumulate_steps=2, model__norm='sync')
    keys, batch_stats = encoded(method, variables)
    for part in (slice(0, None, 2), slice(1, None, 2)):
        found = [group_of(method, variables, images[part]) for images in VIEWS]
        for view, (expected, _) in enumerate(found):
            np.testing.assert_allclose(keys[view, part], expected, rtol=1e-4, atol=1e-5)
        variables = variables | jax.tree.map(lambda *of_views: np.mean(of_views, axis=0), *(new for _, new in found))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
        batch_stats,
        variables['batch_stats'],
    )
