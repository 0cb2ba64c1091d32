"""One evaluation: checks everything first, then runs the protocols in turn and writes the results of each."""

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from dualcl_jax import data
from dualcl_jax.data import Source, Splits, example_spec
from dualcl_jax.data.describe import noun
from dualcl_jax.data.images.source import image_shape, image_type, is_photographic
from dualcl_jax.data.tree import batch_of, empty
from dualcl_jax.evaluators.encoder_source import EncoderSource
from dualcl_jax.evaluators.measures.layer_rates import has_known_blocks
from dualcl_jax.evaluators.protocols import kind_of, protocols_of, shot_classes, structure_rows
from dualcl_jax.evaluators.records import VERSION, make_record, other_places, table
from dualcl_jax.evaluators.settings import RULES, default_settings, make_whole
from dualcl_jax.evaluators.task import Task
from dualcl_jax.method.validation import RULES as CONFIG_RULES
from dualcl_jax.method.views.images import ImageViews
from dualcl_jax.system.config import check_fields, override
from dualcl_jax.system.console import is_terminal
from dualcl_jax.system.errors import UserError, first_line, reason_of
from dualcl_jax.system.files import reachable, write_json
from dualcl_jax.system.kinds import IMAGES
from dualcl_jax.system.versions import versions
from dualcl_jax.workdir.folder import open_folder

OF_THE_ENCODER = ('data.image_size', 'data.mean', 'data.std', 'data.value_range')
"""Fields that belong to a trained encoder and cannot be changed."""

OWN_FILES = ('folder', 'npz', 'text')
"""Values of data.name that stand for any files of a user."""
TABLE_WIDTH = 140
"""Characters of a line if there is no terminal."""


def resolve(source: EncoderSource, overrides: Sequence[str]) -> ConfigDict:
    """The config of an evaluation: the run's data, and the settings of the protocols, with overrides of both.

    Raises:
      UserError: a field does not exist, or cannot have this value.
    """
    config = default_settings()
    with config.unlocked():
        config.data = source.config.data.copy_and_resolve_references()
        config.sts.path = source.config.get('sts', ConfigDict()).get('path', '')
    override_data(config, overrides)
    check_fields(config, RULES)
    make_whole(config)
    if len(config.semi.fractions) != len(config.semi.epochs):
        raise UserError('config.semi.epochs: give one number for each of config.semi.fractions')
    return config


def override_data(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Applies overrides, among them fields of the data, to a config with the `data` part of a trained encoder.

    Raises:
      UserError: a field does not exist, belongs to the encoder, or cannot have this value.
    """
    fields = [assignment.partition('=')[0] for assignment in overrides]
    for field in fields:
        if field in OF_THE_ENCODER:
            raise UserError(f'--config.{field}: belongs to the encoder, which was trained with it; leave it out')
    if 'data.name' in fields:
        config.data.limit = config.data.num_examples = 0  # these three apply to the run's own set
        config.data.validation_fraction = 0.0
    override(config, overrides)
    check_fields(config, {field: rule for field, rule in CONFIG_RULES.items() if field.startswith('data.')})


def chosen(given: str, choices: Iterable[str], flag: str, every: Iterable[str] | None = None) -> tuple[str, ...]:
    """The names in 'a,b' or 'all', each once, in the order given; 'all' stands for `every`, by default all choices.

    Raises:
      UserError: a name is not among the choices.
    """
    choices = list(choices)
    names = list(dict.fromkeys(name.strip() for name in given.split(',') if name.strip()))
    for name in names:
        if name not in choices and name != 'all':
            close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
            hint = f'; did you mean {close[0]}?' if close else ''
            raise UserError(f'{flag}={given}: there is no {name}{hint}\nchoose from {", ".join(choices)}, or all')
    if not names:
        raise UserError(f'{flag} is empty: choose from {", ".join(choices)}, or all')
    return tuple((choices if every is None else every) if 'all' in names else names)


def check(source: EncoderSource, splits: Splits, protocols: Sequence[str], *, named: bool) -> None:
    """Raises UserError if these protocols cannot be run on these data with this encoder.

    Data that the user has not `named` must be those that the encoder was trained on.
    """
    train, test = splits
    check_examples(source, train)
    if not named:
        check_trained_on(source, train)
    known = protocols_of(source.kind)
    if 'robustness' in protocols and train.kind == IMAGES:
        channels, kind = image_shape(train)[2], image_type(train)
        if not is_photographic(kind, channels):
            raise UserError(
                f'{train.name}: robustness corrupts images of 8 bits with 1 or 3 channels, but these have {channels} '
                f'of {kind}; leave it out of --protocols'
            )
    needing = [name for name in protocols if known[name].needs_labels]
    if not needing:
        return
    free = ','.join(name for name, protocol in known.items() if not protocol.needs_labels)
    remedy = f'choose a labelled set with --config.data.name, or --protocols={free}, which needs none'
    one = 'image' if train.kind == IMAGES else 'example'
    if test is None:
        raise UserError(f'{train.name}: has no test split, which {needing[0]} needs; {remedy}')
    for split, images in (('training', train), ('test', test)):
        if not (images.labels >= 0).any():
            raise UserError(f'{train.name}: no {split} {one} has a label, which {needing[0]} needs; {remedy}')
    classes = np.unique(train.labels[train.labels >= 0])
    if len(classes) < 2:
        raise UserError(
            f'{train.name}: all training {one}s have the same class; {needing[0]} needs at least two; {remedy}'
        )
    tested = test.labels[test.labels >= 0]
    if not np.isin(tested, classes).any():
        raise UserError(f'{train.name}: no test {one} belongs to a class of the training {one}s; {remedy}')


def read_benchmarks(source: EncoderSource, protocols: Sequence[str], settings: ConfigDict) -> dict[str, Any]:
    """The content of the protocols' own files, by protocol.

    Raises:
      UserError: a protocol cannot measure this encoder, or one of its files is missing or malformed.
    """
    known = protocols_of(source.kind)
    for name in protocols:
        if name not in known:
            raise UserError(f'--protocols: {name} is for {kind_of(name)}, not for {source.kind}; leave it out')
        if known[name].needs_run and source.run is None:
            raise UserError(f'{source.name}: {name} needs a run; give its --workdir, or leave it out')
    return {name: read(settings[name].path) for name in protocols if (read := known[name].read)}


def notes(task: Task, protocols: Sequence[str]) -> list[str]:
    """What an evaluation leaves out, and settings without an effect, one line for each item."""
    known, unit = protocols_of(task.source.kind), noun(task.source.kind)
    unscored = [f'{of.without_score:,} of {of.name}' for of in task.benchmarks.get('sts', ()) if of.without_score]
    found = [f'left out: pairs without a score, {", ".join(unscored)}'] if unscored else []
    if task.benchmarks and task.source.baselines.left_out:
        found.append(f'left out: {task.source.baselines.left_out}')
    if 'structure' in protocols:
        split, chosen = structure_rows(task)
        labels = task.labels(split)[chosen]
        sizes = np.unique(labels[labels >= 0], return_counts=True)[1]
        alone = int(np.sum(sizes == 1))
        if len(sizes) == 1 or alone == len(sizes) > 0:
            reason = 'the same class' if len(sizes) == 1 else 'different classes'
            found.append(f'left out: purity and class distances: all labelled examples have {reason}')
        elif alone:
            found.append(f'left out: purity of {alone:,} examples that are alone in their class')
    if not any(known[name].needs_labels for name in protocols):
        return found
    found += [
        f'left out: {about["count"]:,} {reason.replace(IMAGES, unit)}, {about["classes"]:,} classes: '
        f'{", ".join(about["names"])}' + (', …' if about['classes'] > len(about['names']) else '')
        for reason, about in task.left_out.items()
    ]
    if 'clustering' in protocols and len(np.unique(task.labels('test'))) < 2:
        found.append('left out: clustering: all labelled test examples have the same class')
    train, settings = task.labels('train'), task.settings
    most = [k for k in settings.knn.k if k > len(train)]
    if 'knn' in protocols and most:
        found.append(
            f'knn: k {", ".join(map(str, most))} becomes {len(train):,}, the number of labelled training {unit}'
        )
    tuned = [name for name in ('finetune', 'semi') if name in protocols]
    backbones = [variables['params']['backbone'] for variables in task.source.encoders.values()] if tuned else []
    if settings.finetune.layer_decay != 1 and backbones and not has_known_blocks(backbones[0]):
        found.append(
            f'{", ".join(tuned)}: finetune.layer_decay has no effect: this network has no blocks that are known by name'
        )
    sizes = np.unique(train, return_counts=True)[1]
    for count in settings.few_shot.shots if 'few_shot' in protocols else ():
        fewer = int((sizes < count).sum())
        if not len(shot_classes(task, count)):
            found.append(f'left out: few_shot with {count} {unit} a class: too few classes have that many')
        elif fewer:
            found.append(f'few_shot with {count} {unit} a class: without {fewer:,} classes that have fewer')
    return found


def check_examples(source: EncoderSource, train: Source) -> None:
    """Raises UserError if an encoder does not take the examples of a set."""
    if train.kind != source.kind:
        raise UserError(
            f'{train.name}: holds {train.kind}, but the encoder of {source.name} takes {source.kind}; '
            'choose another set'
        )
    if isinstance(source.views, ImageViews):
        channels = image_shape(train)[2]
        if channels != source.views.channels:
            raise UserError(
                f'{train.name}: images have {channels} channels, but the encoder of {source.name} takes '
                f'{source.views.channels}; choose another set'
            )
        _check_values(source, source.views, train)
        return
    one = empty(batch_of(example_spec(train), 1))
    found, expected = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(function, *arguments))
        for function, arguments in ((source.views.plain, (one,)), (source.views.blank, ()))
    )
    if found != expected:
        raise UserError(
            f'{train.name}: the encoder of {source.name} takes {source.kind} of another shape; choose another set'
        )


def check_trained_on(source: EncoderSource, train: Source) -> None:
    """Raises UserError if a training split is not the one that an encoder was trained on."""
    if train.fingerprint != source.data_fingerprint:
        raise UserError(
            f'{train.name}: not the data that {source.name} was trained on; restore them,\n'
            f'or choose this set explicitly: --config.data.name={source.config.data.name}'
        )


def _check_values(source: EncoderSource, views: ImageViews, train: Source) -> None:
    """Raises UserError if images have 8 bits and the encoder takes another range, or vice versa."""
    kind = image_type(train)
    if (kind == 'uint8') != (not views.value_range):
        low, high = views.value_range or (0, 255)
        raise UserError(
            f'{train.name}: images are {kind}, but the encoder of {source.name} takes '
            f'{"values of" if views.value_range else "8 bits,"} {low:g} to {high:g}; choose another set'
        )


def evaluate(
    source: EncoderSource,
    protocols: Sequence[str],
    encoders: Sequence[str],
    layers: Sequence[str],
    overrides: Sequence[str],
    output: str,
) -> dict[str, Any]:
    """Runs protocols, writes OUTPUT/PROTOCOL.json for each, replacing an earlier one, and prints the table of all.

    Of an earlier file, the records of other encoders and layers are kept if everything else is the same. Results on
    other training or test examples than those of the run go to a folder OUTPUT/on_NAME, see `_folder_of`. The output
    depends only on checkpoint, data, settings, versions, kind of device and the records that are kept: two evaluations
    give the same bytes.

    Returns:
      {'output': the folder, 'records': all records}.

    Raises:
      UserError: a mistake that the user can fix; it is found before anything is computed, if possible.
    """
    config = resolve(source, overrides)
    benchmarks = read_benchmarks(source, protocols, config)
    splits, absent = _load(source, config, protocols, overrides)
    folder = reachable(output, f'--output={output}')
    if splits is not None:
        folder /= _folder_of(source, config.data.name, splits, overrides)
    writes = jax.process_index() == 0
    if writes:
        open_folder(str(folder), '--output')
    task = Task(source, splits, config, tuple(encoders), tuple(layers), benchmarks)
    console = Console(highlight=False, markup=False, quiet=not writes, width=None if is_terminal() else TABLE_WIDTH)
    for note in (*absent, *notes(task, protocols)):
        console.print(f'note: {note}')
    found: list[dict[str, Any]] = []
    for number, name in enumerate(protocols, start=1):
        console.print(f'{name} ({number} of {len(protocols)})')
        records = _records(task, name)
        if writes:
            path, head = folder / f'{name}.json', _head(source, config, name)
            try:
                write_json(path, head | {'records': records + other_places(path, head, records)})
            except OSError as error:
                raise UserError(f'{path}: cannot be written ({reason_of(error)}); choose another --output') from error
        found += records
    names = [] if splits is None else [split.name for split in splits if split is not None]
    where = ', '.join([*names[:1], source.name]) + (f' at step {source.step:,}' if source.step is not None else '')
    console.print(table(found, where, names))
    return {'output': str(folder), 'records': found}


def _head(source: EncoderSource, config: ConfigDict, name: str) -> dict[str, Any]:
    """What the file of a protocol has beside its records."""
    settings, used = config.get(name, ConfigDict()).to_dict(), protocols_of(source.kind)[name].uses
    settings |= {used: config[used].to_dict()} if used else {}
    return {'schema': VERSION, 'protocol': name, 'settings': settings, 'encoder_of': dict(source.provenance)}


def _folder_of(source: EncoderSource, name: str, splits: Splits, overrides: Sequence[str]) -> str:
    """The folder, below that of all results, of those on a set with this `data.name`; empty for the run's own data.

    Another set that is described by its name alone has a folder on_NAME. For others, such as the user's own files or a
    part of a set, the folder also has digits of the fingerprints.
    """
    fields = {assignment.partition('=')[0] for assignment in overrides}
    given = {field for field in fields if field.startswith('data.')}
    trained_on = splits.train.fingerprint == source.data_fingerprint
    found = '' if splits.test is None else splits.test.fingerprint
    if trained_on and (found == source.test_fingerprint or (source.test_fingerprint is None and not given)):
        return ''
    folder = f'on_{name.replace("/", "_").replace(":", "_")}'
    if name not in OWN_FILES and not trained_on and given <= {'data.name', 'data.data_dir'}:
        return folder
    fingerprints = ' '.join(split.fingerprint for split in splits if split is not None)
    return f'{folder}_{hashlib.sha256(fingerprints.encode()).hexdigest()[:8]}'


def _load(
    source: EncoderSource, config: ConfigDict, protocols: Sequence[str], overrides: Sequence[str]
) -> tuple[Splits | None, list[str]]:
    """Loads and checks the data of an evaluation; also returns notes.

    Protocols with files of their own need no data; the data are then None, with a note, if they are not available.

    Raises:
      UserError: the data are missing or do not fit.
    """
    named = any(field.startswith('data.') for field in overrides)
    try:
        splits = data.load(source.data_config(config.data))
        check(source, splits, protocols, named=named)
    except UserError as error:
        known = protocols_of(source.kind)
        if named or any(known[name].read is None for name in protocols):
            raise
        return None, [f'TF-IDF counts the words of the sentences that are measured ({first_line(error)})']
    return splits, []


def _records(task: Task, name: str) -> list[dict[str, Any]]:
    """The records of one protocol."""
    common = {'protocol': name, 'seed': task.seed, 'step': task.source.step, 'versions': versions()}
    records = []
    for result in protocols_of(task.source.kind)[name].run(task):
        if result.data_set is None:
            images, count = task.split(result.split), result.examples or len(task.rows[result.split])
            described = {'data_set': images.name, 'data_fingerprint': images.fingerprint, 'examples': count}
            records.append(make_record(result, **common, **described))
        else:
            records.append(make_record(result, **common))
    return records
