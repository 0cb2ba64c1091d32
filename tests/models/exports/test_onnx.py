"""Encoders as ONNX: the features are those of the run, and what cannot be converted is refused in one line."""

import importlib.util
import json
import sys
from typing import Any

import jax
import numpy as np
import pytest

from dualcl_jax.models.exports import onnx
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.export import describe
from tests.support.random_run import STEP, random_run

converter = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ('jax2onnx', 'onnxruntime')),
    reason="pip install 'dualcl-jax[onnx]'",
)


@pytest.fixture
def plain_types() -> Any:
    """The converter promotes types where the tests of this project forbid it."""
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        yield


@converter
@pytest.mark.slow
@pytest.mark.parametrize('projection', [False, True])
def test_features_are_those_of_the_run(tmp_path, plain_types, projection: bool) -> None:
    import onnxruntime

    run = random_run(tmp_path, 'model.stem=cifar', 'data.image_size=32', 'model.name=resnet18')
    description, variables = describe(run, encoder='query', projection=projection)
    content = onnx.write(description, variables)
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    pixels = np.random.default_rng(3).uniform(size=(3, *description.images.shape)).astype(np.float32)
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
    expected = np.asarray(onnx.compute(description, description.build(), variables, pixels))
    assert found.shape == (3, description.features)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata['provenance'])['step'] == STEP
    assert str(tmp_path).encode() not in content


@converter
@pytest.mark.slow
def test_different_features_are_refused(tmp_path, plain_types, monkeypatch: pytest.MonkeyPatch) -> None:
    run = random_run(tmp_path, 'model.name=tiny')
    monkeypatch.setattr(onnx, 'TOLERANCE', -1.0)
    with pytest.raises(UserError, match='differ from those of JAX by'):
        onnx.write(*describe(run, encoder='query', projection=False))
    monkeypatch.setattr('jax2onnx.to_onnx', lambda *args, **kwargs: 1 / 0)
    with pytest.raises(UserError, match=r'tiny cannot be converted \(division by zero\)'):
        onnx.write(*describe(run, encoder='query', projection=False))


def test_missing_package(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = random_run(tmp_path, 'model.name=tiny')
    monkeypatch.setitem(sys.modules, 'jax2onnx', None)
    with pytest.raises(UserError, match=r"pip install 'dualcl-jax\[onnx\]'"):
        onnx.write(*describe(run, encoder='query', projection=False))
