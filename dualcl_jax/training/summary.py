"""The texts of a run: a header at the start, status lines during training, and `summary.json` at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from dualcl_jax.data import Splits
from dualcl_jax.data.describe import baseline_name, noun, units
from dualcl_jax.method.choices import FEW_IMAGES
from dualcl_jax.method.describe import describe_method
from dualcl_jax.method.groups import LEAST, group_size, normalized_alone
from dualcl_jax.method.negatives.selectors import find_selector
from dualcl_jax.method.resolve import LEFT_OUT
from dualcl_jax.system.config import flatten
from dualcl_jax.system.console import duration
from dualcl_jax.system.kinds import IMAGES, TEXT
from dualcl_jax.system.user_modules import own_modules
from dualcl_jax.system.versions import versions
from dualcl_jax.training.plan import Plan
from dualcl_jax.training.run import Run
from dualcl_jax.workdir.metrics import KNN, STS, MetricsLog, Record


def header(plan: Plan, params: optax.Params, damaged: Mapping[int, str] | None = None) -> dict[str, str]:
    """Describes what the run will do, one fact per line.

    Args:
      plan: the plan of the run.
      params: the parameters of its online encoder, or their shapes.
      damaged: the steps of unusable checkpoints, each with the reason.
    """
    config, method, mesh = plan.config, plan.method, plan.mesh
    devices, processes = mesh.devices.size, jax.process_count()
    share = config.train.batch_size // devices
    parts = method.accumulate_steps
    groups, kind = method.encoder.groups, mesh.devices.flat[0].device_kind
    if config.model.norm == 'sync':
        norm = 'over the whole batch'
    elif method.encoder.span > 1:
        norm = f'over groups of {method.encoder.span} devices'
    else:
        norm = f'over {share // (parts * groups)} {noun(plan.splits.train.kind)}' + (
            f', {groups} groups a device' if groups > 1 else ' of a device'
        )
    facts = describe_method(config, method, plan.splits, params) | {
        'batch statistics': f'{config.model.norm}: {norm}' + (', keys shuffled' if method.shuffle_keys else ''),
        'devices': f'{devices} × {kind} in {processes} {"process" if processes == 1 else "processes"}'
        f', batch {config.train.batch_size} = {share} a device'
        + (f' in {parts} parts' if parts > 1 else '')
        + f', {config.parallel.mapper}{_repeats(config, mesh.devices.flat[0].platform)}',
        'steps': f'{plan.total_steps:,} ({plan.total_steps / plan.steps_per_epoch:.3g} epochs)'
        + (f', resuming from step {plan.start_step:,}' if plan.start_step else ''),
        'workdir': str(plan.folder),
    }
    if config.monitor.every_epochs and not plan.measures_accuracy:
        facts['kNN accuracy'] = (
            f'not measured: it needs labelled {units(plan.splits.train.kind)} of the same classes, for training and '
            'for testing'
        )
    elif config.monitor.every_epochs:
        facts |= _limits_of_knn(plan.splits, config.monitor)
    if plan.similar is not None:
        count = f'{len(plan.similar.scores):,} pairs of {config.sts.path}'
        facts['STS-B dev'] = count if config.monitor.every_epochs else 'not measured: monitor.every_epochs is 0'
    for step, reason in (damaged or {}).items():
        facts[f'damaged checkpoint {step}'] = f'{reason}; moved to {plan.folder / "damaged"}'
    if plan.origin:
        facts['starts from'] = plan.origin
    if plan.chosen:
        facts |= _first_run(plan)
    if found := _warnings(plan):
        facts['warning'] = '; '.join(found)
    return facts


def _warnings(plan: Plan) -> list[str]:
    """Describes fields that are set without an effect, and batch statistics that leave little of the examples."""
    config, encoder, devices = plan.config, plan.method.encoder, plan.mesh.devices.size
    selector = config.negatives.selector
    measured = plan.measures_accuracy or (config.monitor.every_epochs and plan.similar is not None)
    idle = {
        'loss.shuffle_keys has no effect with one BN group': (
            config.loss.shuffle_keys and devices * encoder.groups == encoder.span
        ),
        f'negatives.k has no effect with negatives.selector={selector}': config.negatives.k and selector == 'all',
        f'negatives.skip has no effect with negatives.selector={selector}': (
            config.negatives.skip and 'skip' not in find_selector(selector).fields
        ),
        'checkpoint.keep_best has no effect: the monitor measures nothing': (
            config.checkpoint.keep_best and not measured
        ),
    }
    found = [message for message, holds in idle.items() if holds]
    alone = normalized_alone(config)
    if alone and group_size(config, devices) == LEAST:
        found.append(
            f'model.norm={config.model.norm} leaves {LEAST} {units(plan.splits.train.kind)} in a group, of which the '
            f'batch normalisation of {alone} keeps only signs: use larger groups'
        )
    return found


def _repeats(config: FrozenConfigDict, platform: str) -> str:
    """The part of the header on whether the same command gives the same bits on GPUs; empty on other platforms."""
    if platform not in ('gpu', 'cuda', 'rocm'):
        return ''
    return ', deterministic kernels' if config.parallel.deterministic else ', nondeterministic kernels'


def _first_run(plan: Plan) -> dict[str, str]:
    """What was chosen for the set, and when to look at the accuracy if it is measured."""
    count = len(plan.splits.train)
    facts = {'chosen': plan.chosen}
    if plan.first_look:
        facts['first look'] = (
            f'after step {plan.first_look:,} of {plan.total_steps:,}; earlier, accuracy may be below that of '
            'the random encoder'
        )
    if count < FEW_IMAGES and not plan.config.init_from:
        facts['few images'] = (
            f'{count:,} are few to train on; starting from pretrained weights usually works better: '
            '--init_from=FILE (docs/python.md)'
        )
    return facts


def _limits_of_knn(splits: Splits, settings: Any) -> dict[str, str]:
    """The ways in which the kNN accuracy of a run deviates from its settings, the `monitor` part of its config."""
    k, bank = settings.k, settings.bank
    assert splits.test is not None
    train, test = (source.labels[source.labels >= 0] for source in (splits.train, splits.test))
    count = min(len(train), bank or len(train))
    limits = [f'k is {count:,}, the number of labelled training images, instead of {k:,}'] if k > count else []
    strange = int((~np.isin(test, train)).sum())
    if strange:
        what = 'are left out' if settings.unseen == LEFT_OUT else 'count as wrong'
        limits.append(f'{strange:,} test images of classes without training images {what}')
    return {'kNN accuracy': '; '.join(limits)} if limits else {}


def status(record: Record, kind: str, knn_top1: float | None, sts: float | None = None) -> str:
    """Formats a record of training metrics as a status line, with the newest scores of the encoder.

    Args:
      record: a record of `metrics.jsonl`.
      kind: kind of the examples that the run trains on.
      knn_top1, sts: accuracy and correlation; None if there is none.
    """
    parts = [f'epoch {record["train/epoch"]:.1f}', f'loss {record["train/loss"]:.3f}']
    parts.append(f'(chance {record["train/loss_chance"]:.2f})')
    if knn_top1 is not None:
        parts.append(f'kNN {100 * knn_top1:.1f} %')
    if sts is not None:
        parts.append(f'STS-B dev {100 * sts:.1f}')
    if 'time/images_per_second' in record:
        parts.append(f'{record["time/images_per_second"]:,.0f} {noun(kind)}/s')
    return '  '.join(parts)


def results(
    run: Run,
    log: MetricsLog,
    rates: Mapping[str, float],
    *,
    skipped_steps: Sequence[int],
    state_sha256: str,
) -> dict[str, Any]:
    """The content of `summary.json`; values that were not measured are None.

    If no steps remained, the rates are those of the last record.
    """
    plan = run.plan
    return {
        'step': plan.total_steps,
        'resumed_from_step': plan.resumed_from,
        'images_seen': plan.total_steps * plan.config.train.batch_size,
        'images_per_second': rates.get('time/images_per_second', log.last('time/images_per_second')),
        'input_wait_fraction': rates.get('time/input_wait_fraction', log.last('time/input_wait_fraction')),
        'save_wait_seconds': round(run.checkpoints.waited_s, 3),
        'skipped_steps': list(skipped_steps),
        'extended_at': list(run.past.extended_at),
        'loss': log.last('train/loss'),
        'knn_top1': log.last(KNN.backbone),
        'knn_top1_projection': log.last(KNN.projection),
        'knn_top1_raw_pixels': log.at_start(KNN.baseline),
        'knn_top1_random_encoder': None if plan.config.init_from else log.at_start(KNN.backbone),
        **(_sts(log) if plan.similar is not None else {}),
        'wall_time_s': round(run.wall_time_s(), 3),
        'state_sha256': state_sha256,
        'config': plan.config.to_dict(),
        'versions': versions(),
    }


def _sts(log: MetricsLog) -> dict[str, float | None]:
    """The Spearman correlations on STS-B dev, in [-1, 1], for `summary.json`."""
    return {
        'sts_dev_spearman': log.last(STS.backbone),
        'sts_dev_spearman_projection': log.last(STS.projection),
        'sts_dev_spearman_tf_idf': log.at_start(STS.baseline),
        'sts_dev_spearman_before_training': log.at_start(STS.backbone),
    }


def closing(summary: Mapping[str, Any], workdir: epath.Path) -> str:
    """The last lines that a finished run prints."""
    loss = 'not measured' if summary['loss'] is None else f'{summary["loss"]:.3f}'
    lines = [f'done: {summary["step"]:,} steps in {duration(summary["wall_time_s"])}, loss {loss}']
    if summary.get('save_wait_seconds') is not None:
        lines[0] += f'; waited {summary["save_wait_seconds"]:.1f} s for checkpoints'
    if summary['knn_top1'] is not None:
        data = summary['config']['data']
        split = 'validation' if data['validation_fraction'] else 'test'
        kind = TEXT if data['name'] == TEXT else IMAGES
        lines.append(
            f'kNN accuracy on the {split} {noun(kind)}: {100 * summary["knn_top1"]:.1f} %'
            f' ({baseline_name(kind)} {_percent(summary["knn_top1_raw_pixels"])},'
            f' random encoder {_percent(summary["knn_top1_random_encoder"])})'
        )
    if summary.get('sts_dev_spearman') is not None:
        values = (summary[f'sts_dev_spearman{end}'] for end in ('', '_tf_idf', '_before_training'))
        found, tf_idf, start = ('not measured' if value is None else f'{100 * value:.1f}' for value in values)
        lines.append(f'Spearman on STS-B dev × 100: {found} (TF-IDF {tf_idf}, before training {start})')
    pictures = 'report.html, figures/, ' if (workdir / 'report.html').exists() else ''
    lines.append(f'results in {workdir}: {pictures}summary.json, metrics.jsonl, checkpoints/')
    own = own_modules(dict(flatten(ConfigDict(summary['config']))))
    given = ' '.join([f'--workdir={workdir}', *(f'--import={module}' for module in own)])
    if summary['config']['data']['name'] == TEXT:
        protocols = 'sts --config.sts.path=DIR'
    else:
        protocols = 'structure' if summary['knn_top1'] is None else 'knn,linear'  # the others need labels
    if '__main__' in own:  # of a notebook or script, which a command cannot import
        return '\n'.join(lines)
    lines.append(f'next: dualcl evaluate {given} --protocols={protocols}')
    lines.append(f'      dualcl embed {given} --output=features.parquet')
    lines.append(f'      dualcl export {given} --format=safetensors --output=encoder.safetensors')
    return '\n'.join(lines)


def _percent(share: float | None) -> str:
    return 'not measured' if share is None else f'{100 * share:.1f} %'
