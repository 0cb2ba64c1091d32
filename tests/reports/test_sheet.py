"""The contact sheet of --show_views contains the same views as training."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import default
from dualcl_jax import data, main
from dualcl_jax.data import order
from dualcl_jax.method import randomness
from dualcl_jax.method.views.images import PRESETS, image_views, make_views
from dualcl_jax.reports.view_sheet import first_views, show_views
from tests.support.runs import write_npz


def npz_config(path):
    config = default.get_config()
    config.data.name, config.data.path, config.data.image_size = 'npz', str(path), 12
    return config


def test_the_views_are_those_of_the_first_step(tmp_path):
    config = npz_config(write_npz(tmp_path / 'data.npz'))
    train, _ = data.load(config.data)
    batch = data.loader.make_batch(train, np.arange(32), seed=0, step=0, batch_size=32)
    keys = randomness.example_keys(0, randomness.VIEWS, np.int32(0), batch.positions)
    specs, views = PRESETS['moco_v2'], image_views(config, batch.examples)
    trained = jax.jit(make_views, static_argnums=(2, 3))(keys, batch.examples, specs, 12)
    ids = order.epoch_permutation(0, 0, len(train))[:10]
    np.testing.assert_allclose(first_views(train, ids, views, 0), trained[:, :10], atol=1e-6)


def test_a_picture_comes_out(tmp_path, capsys):
    show_views(npz_config(write_npz(tmp_path / 'data.npz')), str(tmp_path / 'new' / 'views.png'))
    assert 'views.png' in capsys.readouterr().out
    with Image.open(tmp_path / 'new' / 'views.png') as picture:
        assert picture.width > picture.height > 100


def test_the_flag_replaces_the_workdir():
    flags, _ = main.parse(['--config=x.py', '--show_views=a.png'])
    assert (flags.workdir, flags.show_views) == (None, 'a.png')
    with pytest.raises(data.UserError, match='--workdir'):
        main.parse(['--config=x.py'])


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(data.UserError, match=r'--show_views=.*views\.jpg: name a file that ends in \.png'):
        show_views(npz_config(write_npz(tmp_path / 'data.npz')), str(tmp_path / 'views.jpg'))
