"""`dualcl_jax.evaluate`: runs the protocols of an evaluation from Python."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dualcl_jax.api.arguments import assignment, optional_path
from dualcl_jax.api.session import using_jax
from dualcl_jax.system.config import MOVABLE
from dualcl_jax.system.errors import UserError, first_line


def evaluate(
    workdir: str | os.PathLike[str] | None = None,
    *,
    exported: str | os.PathLike[str] | None = None,
    protocols: str | Sequence[str] = ('knn', 'linear'),
    step: str | int = 'latest',
    encoders: str | Sequence[str] | None = None,
    layers: str | Sequence[str] = 'all',
    output: str | os.PathLike[str] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Evaluates the encoders of a run, or an exported one, as `dualcl evaluate` does, and writes the same files.

    Args:
      workdir: workdir of the run.
      exported: a file of `dualcl export`, in place of a workdir.
      protocols: names of `dualcl_jax.evaluators.protocols.PROTOCOLS`, or 'all'.
      step: step of the checkpoint: 'latest', 'best' or a number.
      encoders: 'query' (default), 'momentum' or 'all'.
      layers: 'backbone', 'projection' or 'all'.
      output: folder of the results; by default `evaluation` in the workdir, or `FILE.evaluation`.
      fields: settings of the protocols and of the data, such as {'knn.k': (20, 200), 'data.path': 'other'}.

    Returns:
      One record for each number, with its `metric`, `value`, `encoder`, `layer`, interval and more
      (`dualcl_jax.evaluators.records`).

    Raises:
      UserError: a mistake that the user can fix, with the line that the command would print.
    """
    if (workdir is None) == (exported is None):
        raise UserError('evaluate: give either a workdir or exported=FILE')
    if exported is not None and str(step) != 'latest':
        raise UserError(f'step={step}: an exported encoder has only one step; leave it out')
    run, file = optional_path('workdir', workdir), optional_path('exported', exported)
    folder = optional_path('output', output)
    with using_jax():
        found = run_protocols(
            run,
            file,
            protocols=_joined(protocols) or '',
            step=str(step),
            encoders=_joined(encoders),
            layers=_joined(layers) or '',
            output=folder,
            fields=[assignment(field, value) for field, value in (fields or {}).items()],
        )
    return found['records']


def _joined(names: str | Sequence[str] | None) -> str | None:
    return names if names is None or isinstance(names, str) else ','.join(names)


def run_protocols(
    workdir: str | None,
    exported: str | None,
    *,
    protocols: str,
    step: str,
    encoders: str | None,
    layers: str,
    output: str | None,
    fields: Sequence[str],
) -> dict[str, Any]:
    """Runs protocols on either a workdir or an exported file, with names and fields in the form of their flags.

    Returns:
      {'output': the folder, 'records': all records}.

    Raises:
      UserError: a mistake that the user can fix.
    """
    from dualcl_jax.evaluators import encoder_source
    from dualcl_jax.evaluators.evaluate import chosen
    from dualcl_jax.evaluators.evaluate import evaluate as run
    from dualcl_jax.evaluators.protocols import NAMES, protocols_of

    if exported is None:
        assert workdir is not None
        source, default_output = encoder_source.from_workdir(workdir, step), os.path.join(workdir, 'evaluation')
    else:
        source, default_output = encoder_source.from_export(exported), f'{exported}.evaluation'
    names = chosen(protocols, NAMES, '--protocols', protocols_of(source.kind))
    default = 'query' if 'query' in source.encoders else 'all'
    of_encoders = chosen(encoders or default, source.encoders, '--encoders')
    of_layers = chosen(layers, source.layers, '--layers')
    found = run(source, names, of_encoders, of_layers, fields, output or default_output)
    print(f'results in {found["output"]}')
    if workdir is not None and output is None:
        own = os.path.basename(found['output']) == 'evaluation'  # the data of the run, which may have moved
        _refresh_report(workdir, [field for field in fields if own and field.partition('=')[0] in MOVABLE])
    return found


def _refresh_report(workdir: str, moved: Sequence[str]) -> None:
    """Rewrites `report.html` of a run, if it has one, with the new records.

    `moved` are overrides of the fields with the location of its data. If the report cannot be written, for instance
    without the data of the run, a note gives the reason; the records are written anyway.
    """
    import jax

    from dualcl_jax.reports.content import describe
    from dualcl_jax.reports.page import render
    from dualcl_jax.reports.subject import read_subject
    from dualcl_jax.system.files import write_text
    from dualcl_jax.workdir.folder import existing_or_new

    path = existing_or_new(workdir) / 'report.html'
    if not path.exists():
        return
    by_hand = f'to update it, run dualcl report --workdir={workdir}'
    if jax.process_count() > 1:
        if jax.process_index() == 0:
            print(f'report.html does not show these results yet; {by_hand}')
        return
    try:
        write_text(path, render([describe(*read_subject(workdir, moved))]))
    except (UserError, OSError) as error:
        print(f'note: report.html does not show these results yet ({first_line(error)}); {by_hand}')
        return
    print(f'{path} updated')
