"""The stored results of a sweep: its plan and a record of each finished run, from which everything is drawn."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from dualcl_jax.system.config import PRIVATE, to_json
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import check_output, write_output
from dualcl_jax.system.kinds import TEXT
from dualcl_jax.workdir.folder import read_fingerprints
from dualcl_jax.workdir.metrics import read_records
from experiments.ablation.measures import MEASURES, Measure
from experiments.ablation.sweep import REPOSITORY, Job, Sweep, configured, length, public_fields

Record = dict[str, Any]
NUMBER = int | float
RECORD = {
    'arm': str,
    'seed': int,
    'fields': [str],
    'steps': int,
    'passes': int,
    'wall_time_s': NUMBER,
    'curve': [{'step': int, 'passes': int, 'wall_time_s': NUMBER}],
    'state_sha256': str,
    'versions': dict,
    'config': {
        'data': {'name': str},
        'loss': {'symmetric': bool},
        'monitor': {'k': int, 'temperature': NUMBER},
        'train': {'batch_size': int},
    },
}
"""What every record contains, as for `_misfit`."""
PLAN = {
    'name': str,
    'command': str,
    'title': str,
    'config': str,
    'base': [str],
    'arms': [{'name': str, 'fields': [str], 'x': NUMBER | None, 'series': str, 'levels': [str]}],
    'baseline': str,
    'seeds': [int],
    'budget': int,
    'x_label': str,
}
"""What every stored plan contains, as for `_misfit`."""


def make_plan(sweep: Sweep, path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The plan of a sweep, with the command that runs it, but without paths of this machine.

    Args:
      sweep: the sweep.
      path: its file; of one outside the repository, the command has only the name.
      overrides: 'field=value' for every arm.
    """
    overrides = public_fields(overrides)
    arms = tuple(dataclasses.replace(arm, fields=tuple(public_fields(arm.fields))) for arm in sweep.arms)
    sweep = dataclasses.replace(sweep, base=tuple(public_fields(sweep.base)), arms=arms)
    file, repository = Path(path).resolve(), REPOSITORY.resolve()
    shown = file.relative_to(repository).as_posix() if file.is_relative_to(repository) else file.name
    command = [f'python -m experiments.ablation run {shown}', f'--budget={sweep.budget}']
    command += [f'--seeds={",".join(map(str, sweep.seeds))}', *(f'--config.{field}' for field in overrides)]
    return {'name': Path(path).stem, 'command': ' '.join(command), 'overrides': overrides, **dataclasses.asdict(sweep)}


def write_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Stores the plan of a sweep.

    Raises:
      UserError: the folder holds another sweep, or cannot be written.
    """
    path = folder / 'sweep.json'
    if path.exists():
        for what in ('name', 'config'):
            if (before := read_plan(folder)[what]) != plan[what]:
                known = 'the sweep' if what == 'name' else 'a sweep of'
                raise UserError(f'--output={folder}: holds {known} {before}, not {plan[what]}; choose another folder')
    check_output(str(path))
    _write(path, plan)


def read_plan(folder: Path) -> dict[str, Any]:
    """Reads the plan that `write_plan` stored; the default measure is kNN accuracy.

    Raises:
      UserError: the folder holds no plan, or a damaged one.
    """
    path = folder / 'sweep.json'
    if not path.exists():
        raise UserError(f'{path}: no sweep here; give the --output folder of a sweep')
    stored = _read(path, PLAN)
    # Older plans have the overrides in their command alone.
    plan = {'measure': 'knn', 'overrides': stored['command'].split(' --config.')[1:]} | stored
    known = {'measure': list(MEASURES), 'baseline': [arm['name'] for arm in plan['arms']]}
    wrong = [name for name, values in known.items() if plan[name] not in values]
    if wrong or _misfit(plan['overrides'], [str]) is not None:
        raise _damaged(path, f'{(*wrong, "overrides")[0]} is missing or wrong')
    return plan


def path_of(folder: Path, job: Job) -> Path:
    """The path of the record of a run."""
    return folder / 'records' / f'{job.name}.json'


def read_record(folder: Path, job: Job) -> Record | None:
    """Reads the record of a run; None if the run has not finished.

    Raises:
      UserError: the record is damaged, or belongs to a run with different fields or another measure.
    """
    path = path_of(folder, job)
    if not path.exists():
        return None
    record = _read(path, RECORD)
    _check(path, record, job.stored_fields, job.measure)
    return record


def read_all(folder: Path, plan: dict[str, Any]) -> list[Record]:
    """Reads all records of the plan's arms, sorted by arm and seed.

    Raises:
      UserError: a record is damaged, or of a run that is not in the plan: its fields, length, measure or data differ.
    """
    arms = {arm['name']: arm for arm in plan['arms']}
    order = {name: place for place, name in enumerate(arms)}
    found: list[Record] = []
    paths: list[Path] = []
    for path in sorted((folder / 'records').glob('*.json')):
        record = _read(path, RECORD)
        if record['arm'] in arms:
            _check(path, record, _planned(plan, arms[record['arm']], record), MEASURES[plan['measure']])
            found.append(record)
            paths.append(path)
    _check_data(paths, found)
    return sorted(found, key=lambda record: (order[record['arm']], record['seed']))


def _planned(plan: dict[str, Any], arm: dict[str, Any], record: Record) -> list[str]:
    """The fields that the plan has for the run of a record."""
    fields = public_fields([*plan['base'], *arm['fields'], *plan['overrides'], f'seed={record["seed"]}'])
    if public_fields(record['fields'])[:-1] != fields:
        return [*fields, *record['fields'][-1:]]
    steps, _ = length(ConfigDict(record['config']), plan['budget'])
    return [*fields, f'train.steps={steps}']


def _check(path: Path, record: Record, fields: list[str], measure: Measure) -> None:
    """Raises UserError if a record belongs to a run with other fields or another measure."""
    if (stored := public_fields(record['fields'])) != fields:  # older records have more paths
        changed = sorted(set(stored) ^ set(fields))
        raise UserError(
            f'{path}: belongs to a run with different fields ({", ".join(changed) or "in a different order"})\n'
            'use the sweep and flags of that run, or another folder'
        )
    if any(value.key not in record for value in measure.values):
        raise UserError(f'{path}: was not measured by {" and ".join(measure.protocols)}; use another --output')


def _check_data(paths: Sequence[Path], records: Sequence[Record]) -> None:
    """Raises UserError if runs with equal fields of the data had different data. Older records do not contain it."""
    first: dict[tuple[str, ...], tuple[Path, str]] = {}
    for path, record in zip(paths, records, strict=True):
        if (fingerprint := record.get('data_fingerprint')) is None:
            continue
        alike = tuple(field for field in record['fields'] if field.startswith('data.'))
        if record['config']['data']['name'] == TEXT:  # the tokens of sentences depend on other fields, too
            alike = (record['arm'], *alike)
        other, before = first.setdefault(alike, (path, fingerprint))
        if fingerprint != before:
            raise UserError(
                f'{path}: trained on other data than {other.name} (data_fingerprint); use another --output, or the '
                'data of that run'
            )


def same_runs(jobs: Sequence[Job], other: Path, sweep: Sweep) -> dict[str, Record]:
    """Finds records of another sweep that belong to equal runs, whatever their arms are called there.

    Two runs are equal if their fields give the same config from the same file, and the measure is the same. Runs with
    paths of which only the last part is stored are not known to be equal.

    Args:
      jobs: the jobs of this sweep.
      other: the folder of the other sweep.
      sweep: this sweep.

    Returns:
      The records under the names of these jobs.

    Raises:
      UserError: the other folder holds no sweep, or a damaged one.
    """
    plan = read_plan(other)
    if (plan['config'], plan['measure']) != (sweep.config, sweep.measure):
        return {}

    def run(fields: Sequence[str]) -> str:
        return to_json(configured(sweep.config, fields))

    stored = {run(record['fields']): record for record in read_all(other, plan)}
    found = {}
    for job in jobs:
        record = stored.get(run(job.stored_fields))
        if record is not None and set(job.stored_fields) <= set(job.fields):
            origin = f'{plan["name"]}/{record["arm"]}-seed{record["seed"]}'
            found[job.name] = record | {'arm': job.arm, 'fields': job.stored_fields, 'taken_from': origin}
    return found


def store(folder: Path, job: Job, record: Record) -> None:
    """Writes the record of a run. Raises UserError on failure."""
    path_of(folder, job).parent.mkdir(parents=True, exist_ok=True)
    _write(path_of(folder, job), record)


def by_seed(records: Sequence[Record], arm: str, metric: str) -> dict[int, float]:
    """The values of a metric of an arm by seed, without the runs that lack it."""
    return {r['seed']: r[metric] for r in records if r['arm'] == arm and r[metric] is not None}


def write_record(folder: Path, job: Job) -> Record:
    """Stores the results of a run, read from its workdir: shares of 1, measured once at the end.

    `curve` has the measurements during training, on the validation images if the config holds some out, or STS-B dev.
    It lacks those without a finite value, such as the correlation of a collapsed encoder.
    """
    workdir, measure = folder / 'runs' / job.name, job.measure
    summary = json.loads((workdir / 'summary.json').read_text())
    evaluated = [
        record
        for protocol in measure.protocols
        for record in json.loads((workdir / 'evaluation' / f'{protocol}.json').read_text())['records']
    ]
    logged = read_records(epath.Path(workdir) / 'metrics.jsonl')
    rates = [record['train/false_negative_rate'] for record in logged if 'train/false_negative_rate' in record]
    config = ConfigDict(summary['config'])
    config.update_from_flattened_dict(dict.fromkeys(PRIVATE, ''))
    record = {
        'arm': job.arm,
        'seed': job.seed,
        'fields': job.stored_fields,
        'steps': job.steps,
        'passes': job.passes,
        **measure.read(summary, evaluated),
        'loss': summary['loss'],
        'false_negative_rate': rates[-1] if rates else None,
        measure.rate: summary['images_per_second'],
        'wall_time_s': summary['wall_time_s'],
        'curve': [
            {
                'step': found['step'],
                'passes': round(found['step'] * job.passes / job.steps),
                'wall_time_s': found['wall_time_s'],
                measure.curve: found[measure.logged],
            }
            for found in logged
            if found.get(measure.logged) is not None
        ],
        'state_sha256': summary['state_sha256'],
        'data_fingerprint': read_fingerprints(epath.Path(workdir))[0],
        'versions': summary['versions'],
        'config': config.to_dict(),
    }
    store(folder, job, record)
    return record


def _read(path: Path, shape: dict[str, Any]) -> dict[str, Any]:
    """Reads a JSON file that contains at least this shape. Raises UserError if it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, error) from error
    if (place := _misfit(value, shape)) is not None:
        raise _damaged(path, f'{place.lstrip(".")} is missing or wrong' if place else 'it must be a mapping')
    return value


def _misfit(value: Any, shape: Any, place: str = '') -> str | None:
    """The first place where a value of a JSON file lacks a shape, such as '.arms.0.name'; None if there is none.

    A shape is a type, [shape] for a list of any length, or {key: shape} for a mapping with at least these keys.
    """
    kind: Any = type(shape) if isinstance(shape, dict | list) else shape
    if not isinstance(value, kind):
        return place
    parts: list[tuple[Any, Any, Any]] = []
    if isinstance(shape, dict):
        parts = [(key, value.get(key, ...), part) for key, part in shape.items()]
    elif isinstance(shape, list):
        parts = [(number, each, shape[0]) for number, each in enumerate(value)]
    found = (_misfit(each, part, f'{place}.{name}') for name, each, part in parts)
    return next((each for each in found if each is not None), None)


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f'{path}: damaged ({why}); restore it, or remove it to repeat the run')


def _write(path: Path, value: Any) -> None:
    write_output(str(path), (json.dumps(value, indent=1, allow_nan=False) + '\n').encode())
