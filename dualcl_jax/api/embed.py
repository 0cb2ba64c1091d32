"""`dualcl_jax.embed`: computes the features of a set from Python, and does the work of `dualcl embed`."""

import collections
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dualcl_jax.api.arguments import optional_path, path_of
from dualcl_jax.api.inputs import Data, describe, source_of, without_path, write
from dualcl_jax.api.session import using_jax
from dualcl_jax.system.errors import UserError, listed
from dualcl_jax.system.files import reachable
from dualcl_jax.system.kinds import IMAGES, TEXT

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from dualcl_jax.evaluators.embed_all import Embedding, Examples
    from dualcl_jax.evaluators.encoder_source import EncoderSource

NEAR_DUPLICATE = 0.95
"""Similarity from which two examples count as near duplicates."""
OUTLIER = 4.0
"""Score from which an example counts as an outlier."""
EFFECTIVE = {
    'folder': ('labels', 'path_column', 'label_column', 'stored_size', 'channels'),
    'npz': ('limit', 'num_examples', 'memory_bytes', 'channels'),
    'text': ('limit', 'num_examples', 'memory_bytes', 'columns', 'label_column', 'max_skipped', 'rows'),
}
"""The fields of `config.data` that have an effect on the data in --data, by their form."""


class Request(NamedTuple):
    """What to embed, with which encoder, and what to look for.

    Attributes:
      workdir, encoder: a run, or a file of `dualcl export`.
      data: a folder or an .npz file; for text, a file or folder of sentences; None for the data of the run. From Python
        also arrays or sentences, as for `dualcl_jax.train`.
      layer, step, momentum: which features.
      labels: as `data.labels` of a config.
      near_duplicates, outliers: thresholds; None to look for none.
      fields: fields of the run's config that are replaced, as 'FIELD=VALUE'.
    """

    workdir: str | None
    encoder: str | None
    data: Data | None
    layer: str | None = None
    step: str = 'latest'
    momentum: bool = False
    labels: str = 'auto'
    near_duplicates: float | None = None
    outliers: float | None = None
    fields: Sequence[str] = ()


def embed(
    workdir: str | os.PathLike[str] | None = None,
    *,
    encoder: str | os.PathLike[str] | None = None,
    data: Data | None = None,
    output: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    step: str | int = 'latest',
    momentum: bool = False,
    labels: str | os.PathLike[str] = 'auto',
) -> 'Embedding':
    """The features of every image of a folder, an `.npz` file or an array, copies included, or of sentences.

    It does what `dualcl embed` does.

        labelled = dualcl_jax.embed('runs/photos', data=(images, labels))
        features = dualcl_jax.embed('runs/sentences', data=['a sentence', 'another one']).features

    Args:
      workdir: workdir of a run.
      encoder: a file of `dualcl export`, in place of a workdir.
      data: the folder or file, of images or, with an encoder of text, of sentences; or arrays of the type on which the
        run was trained, or a list of sentences, as for `dualcl_jax.train`. They are written to a temporary file. None:
        the training and test examples of the run.
      output: a file to write as well: .parquet, .npz or .csv. Finished parts are kept beside it until the end, so that
        the same call resumes.
      layer: 'backbone' (default) or 'projection'; of an exported encoder, its own output.
      step: step of the checkpoint: 'latest', 'best' or a number.
      momentum: use the momentum encoder in place of the query encoder.
      labels: 'auto', 'subfolders', 'none', or the path of a CSV file.

    Returns:
      `features` float32 [N, F], `files` [N] (the sentences for text; split and row, such as `train/0`, for images
      without a file of their own), `labels` int32 [N] and `class_names`.

    Raises:
      UserError: a mistake that the user can fix, with the line that the command would print.
    """
    request = Request(
        optional_path('workdir', workdir),
        optional_path('encoder', encoder),
        os.fspath(data) if isinstance(data, os.PathLike) else data,
        layer,
        str(step),
        momentum,
        path_of('labels', labels, "give 'auto', 'subfolders', 'none', or the path of a CSV file"),
    )
    written = optional_path('output', output)
    check(request)
    with using_jax():
        found = embed_to(request, written, return_features=True)[0]
    assert found is not None
    return found


def check(request: Request) -> None:
    """Raises UserError if the parts of a request do not go together."""
    if (request.workdir is None) == (request.encoder is None):
        raise UserError('embed: give either a workdir or an encoder')
    if request.data is None and request.workdir is None:
        raise UserError('--data: required for an exported encoder, which does not store where its data are')
    if request.encoder is not None and (request.momentum or request.step != 'latest'):
        raise UserError('--step and --momentum: an exported encoder has one step and one encoder; leave them out')
    if request.near_duplicates is not None and not -1 < request.near_duplicates <= 1:
        raise UserError(f'--near_duplicates={request.near_duplicates:g}: must be a similarity above -1 and at most 1')
    if request.outliers is not None and not request.outliers >= 0:
        raise UserError(f'--outliers={request.outliers:g}: must be a score of at least 0')


def embed_to(
    request: Request, output: str | None, *, return_features: bool
) -> 'tuple[Embedding | None, dict[str, Any]]':
    """Embeds, writes the file, and looks for near duplicates and outliers.

    Args:
      request: what to embed.
      output: the file to write; None to write none, for a request that looks for nothing.
      return_features: whether to return the features.

    Returns:
      The features, or None; and a dict of 'output', 'examples', 'features', 'near_duplicates' and 'outliers' if
      requested, and 'written', the other files.

    Raises:
      UserError: a mistake that the user can fix.
    """
    import jax

    from dualcl_jax.evaluators.embed_all import Embedding, gathered, parts_of
    from dualcl_jax.evaluators.feature_file import WRITERS, check_format, check_names
    from dualcl_jax.system.files import check_output, reachable, replacing_output

    if jax.process_count() > 1:
        raise UserError(
            f'{jax.process_count()} processes: embed in a single process, which uses all devices of its machine'
        )
    if output is not None:
        check_format(output)
        check_output(output)
    source, name, layer = _encoder(request)
    with _in_file(request, source) as of_file:
        examples = _examples(of_file, source)
    if of_file is not request:
        _check_complete(request.data, examples)
    count, searches = len(examples.names), request.near_duplicates is not None or request.outliers is not None
    if searches and count < 2:
        raise UserError('--near_duplicates and --outliers need at least two examples')
    path = folder = None
    if output is not None:
        check_names(output, examples.names)
        path = Path(reachable(output, f'--output={output}'))
        folder = path.with_name(f'{path.name}.parts')
    parts = parts_of(source, name, layer, examples, folder)
    first = next(parts)
    features = np.empty((count, first.shape[1]), np.float32) if return_features or searches else None
    parts = itertools.chain([first], parts)
    if features is not None:
        parts = gathered(parts, features)
    labels, class_names = examples.labels, examples.class_names
    if output is None:
        collections.deque(parts, maxlen=0)
    else:
        about = {'encoder_of': dict(source.provenance), 'encoder': name, 'layer': layer, 'of': source.name}
        with replacing_output(output) as partial:
            WRITERS[check_format(output)](Path(partial), examples.names, labels, class_names, parts, about)
    print(f'{output or "in memory"}: {layer} features [{count:,}, {first.shape[1]:,}] of the {name} encoder')
    found = {'output': output, 'examples': count, 'features': first.shape[1]}
    if searches:
        assert path is not None
        assert features is not None
        found |= _look(request, path, examples, features)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)  # last: a command that was interrupted before does not embed again
    return Embedding(features, examples.names, labels, class_names) if features is not None else None, found


def _encoder(request: Request) -> 'tuple[EncoderSource, str, str]':
    """The encoders, and the name and the layer of the one to use."""
    from dualcl_jax.evaluators import encoder_source
    from dualcl_jax.evaluators.evaluate import chosen

    if request.workdir is not None:
        source = encoder_source.from_workdir(request.workdir, request.step)
        name = 'momentum' if request.momentum else 'query'
    else:
        assert request.encoder is not None
        source = encoder_source.from_export(request.encoder, '--encoder')
        (name,) = source.encoders
    return source, name, chosen(request.layer or source.layers[0], source.layers, '--layer')[0]


@contextlib.contextmanager
def _in_file(request: Request, source: 'EncoderSource') -> 'Iterator[Request]':
    """A context in which the data of a request are in a file, a temporary one for arrays and sentences.

    Raises:
      UserError: the data are of another kind than the encoder takes, or the file cannot be written.
    """
    from dualcl_jax.models.images import ImageInput

    if request.data is None or isinstance(request.data, str):
        yield request
        return
    with tempfile.TemporaryDirectory() as folder:
        found = describe(request.data, folder, of_text=source.kind == TEXT)
        if found.channels not in (0, source.config.data.channels):
            assert isinstance(source.views, ImageInput)
            takes = source.config.data.channels or f'{source.views.channels} of 8 bits'
            raise UserError(
                f'data: {found.channels} channels as stored, but the encoder takes {takes}; '
                'give images as those that it was trained on'
            )
        path = found.fields['data.path']
        assert found.write is not None
        write(path, found.write)
        fields = [f'data.memory_bytes={max(source.config.data.memory_bytes, os.path.getsize(path))}']
        if 'data.columns' in found.fields:
            fields += [f'data.columns={found.fields["data.columns"]}', 'data.label_column=']
        with without_path(path):
            yield request._replace(data=path, fields=fields)


def _check_complete(data: Any, examples: 'Examples') -> None:
    """Raises UserError if sentences of a list are left out: a row of features belongs to a place in the list."""
    lost = len(data) - len(examples.names) if examples.sources[0].kind == TEXT else 0
    if lost:
        raise UserError(f'data: {lost:,} of the {len(data):,} sentences cannot be used; leave them out')


def _settings(request: Request, source: 'EncoderSource') -> 'ConfigDict':
    """The `data` part of a config: that of the run, or defaults for --data, and then the fields of the request.

    Raises:
      UserError: a flag or a field has no effect or contradicts another one, or a field cannot have this value.
    """
    from ml_collections import ConfigDict

    from dualcl_jax.data.text.files import has_lines
    from dualcl_jax.evaluators.evaluate import OF_THE_ENCODER, override_data
    from dualcl_jax.system.config import PATHS, flatten

    config = ConfigDict({'data': source.config.data.to_dict()})
    form, is_file_of_lines = None, False
    if request.data is not None:
        assert isinstance(request.data, str)
        root = reachable(request.data, f'--data={request.data}')
        if not root.exists():
            raise UserError(f'--data={request.data}: no such file or folder; correct the path')
        form = source_of(request.data, of_text=source.kind == TEXT)
        is_file_of_lines = form == 'text' and has_lines(request.data) and not root.is_dir()
    if request.labels != 'auto' and form != 'folder':
        raise UserError(f'--labels={request.labels}: only for a folder of images in --data; leave it out')
    if form is not None:
        known = dict(flatten(config)).keys() - OF_THE_ENCODER
        for field in (assignment.partition('=')[0] for assignment in request.fields):
            if field in ('data.name', *PATHS) or (field == 'data.labels' and request.labels != 'auto'):
                flag = f'--labels={request.labels}' if field == 'data.labels' else f'--data={request.data}'
                raise UserError(f'--config.{field}: contradicts {flag}; leave one of them out')
            if field.removeprefix('data.') not in EFFECTIVE[form] and field in known:
                raise UserError(f'--config.{field}: has no effect with --data={request.data}; leave it out')
        config.data.update(name=form, path=request.data, limit=0, num_examples=0)
        config.data.update(validation_fraction=0.0, test_fraction=0.0)  # so that rows stay in their order
        if form == 'folder':
            config.data.update(labels=request.labels, path_column='', label_column='')
        if is_file_of_lines:
            config.data.update(columns='', label_column='')
    override_data(config, request.fields)
    return config.data


def _examples(request: Request, source: 'EncoderSource') -> 'Examples':
    """The examples with their names. What is left out is printed."""
    from dualcl_jax import data
    from dualcl_jax.data.describe import describe_data
    from dualcl_jax.data.images.folder import every_image
    from dualcl_jax.data.text.source import BETWEEN
    from dualcl_jax.evaluators.embed_all import Examples
    from dualcl_jax.evaluators.evaluate import check_examples, check_trained_on

    settings = _settings(request, source)
    if request.data is not None and settings.name == 'folder':
        every, skipped = every_image(settings)
        loaded, count = data.Splits(every, None), len(skipped)
        left_out = f'{count:,} files: {listed(skipped[:3], count, separator="; ")}' if count else None
    else:
        loaded = data.load(source.data_config(settings))
        left_out = describe_data(loaded).get('left out')
    check_examples(source, loaded.train)
    if request.data is None and not request.fields:
        check_trained_on(source, loaded.train)
    if left_out:
        print(f'left out: {left_out}')
    splits = {name: split for name, split in loaded._asdict().items() if split is not None}
    names: list[str] = []
    for name, split in splits.items():
        shown = split.display(np.arange(len(split)))
        names += [f'{name}/{row}' for row in range(len(split))] if shown is None else shown
    if loaded.train.kind == TEXT and any(BETWEEN in name for name in names):
        print('pairs: their first sentences are embedded; --config.data.columns names another column')
        names = [name.partition(BETWEEN)[0] for name in names]
    return Examples(list(splits.values()), names)


def _look(request: Request, path: Path, examples: 'Examples', features: np.ndarray) -> dict[str, Any]:
    """Finds near duplicates or outliers: writes their tables and the page, and counts them."""
    from dualcl_jax.evaluators.measures import neighbours
    from dualcl_jax.reports.neighbours import Outliers, write_page, write_tables
    from dualcl_jax.system.console import progress

    with progress(neighbours.num_blocks(len(features)), 'nearest neighbours') as advance:
        nearest = neighbours.nearest_others(features, advance)
    found: dict[str, Any] = {}
    pairs = outliers = None
    if request.near_duplicates is not None:
        pairs = neighbours.near_duplicates(nearest, request.near_duplicates)
        if examples.sources[0].kind == IMAGES:
            pairs = neighbours.confirmed(pairs, request.near_duplicates, examples.at)
        found['near_duplicates'] = len(pairs.first)
        print(f'{len(pairs.first):,} pairs with a similarity of at least {request.near_duplicates:g}')
    if request.outliers is not None:
        scores = neighbours.outlier_scores(nearest)
        rows = np.flatnonzero(scores >= request.outliers)
        rows = rows[np.argsort(-scores[rows], kind='stable')]
        outliers = Outliers(rows, scores[rows])
        found['outliers'] = len(rows)
        print(f'{len(rows):,} outliers with a score of at least {request.outliers:g}')
    about = f'{len(features):,} examples, {features.shape[1]:,} features'
    page = write_page(path, examples, about, pairs, outliers)
    written = [*write_tables(path, examples.names, pairs, outliers), *([page] if page else [])]
    print('\n'.join(f'{name} written' for name in written))
    return found | {'written': written}
