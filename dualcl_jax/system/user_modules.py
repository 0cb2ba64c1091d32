"""Parts of a method that are the user's own: a config names them 'MODULE:NAME', and the user imports the module.

Only the user's own command or call names a module to import. Stored configs and files of weights contain such names,
too, and must not execute code.
"""

import importlib
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from dualcl_jax.system.errors import UserError

FIELDS = ('model.name', 'negatives.selector')
"""The fields of a config that may name a part of the user's own."""


def own_modules(fields: Mapping[str, Any]) -> list[str]:
    """The modules that the `FIELDS` of a config name, from its values by dotted name.

    Example:
      >>> own_modules({'model.name': 'nets:Net', 'negatives.selector': 'nets:pick'})
      ['nets']
    """
    found = (_module_of(fields, field) for field in FIELDS)
    return list(dict.fromkeys(module for module in found if module))


def import_named(fields: Mapping[str, Any]) -> None:
    """Imports the modules that the `FIELDS` of the user's config name, from its values by dotted name.

    Raises:
      UserError: there is no such module, or it fails.
    """
    for field in FIELDS:
        if module := _module_of(fields, field):
            _import(module, f'config.{field}={fields[field]!r}')


def import_own(modules: Iterable[str]) -> None:
    """Imports the modules of the flag --import.

    Raises:
      UserError: there is no such module, or it fails.
    """
    for module in modules:
        _import(module, f'--import={module}')


def _module_of(fields: Mapping[str, Any], field: str) -> str:
    """The module that a field names; empty if it names none, or if the config lacks the field (refused later)."""
    module, colon, _ = str(fields.get(field, '')).partition(':')
    return module if colon else ''


def is_missing(name: str) -> bool:
    """Whether the value of one of the `FIELDS` names a module that the program has not imported."""
    module, colon, _ = name.partition(':')
    return bool(colon) and module not in sys.modules


def _import(module: str, named: str) -> None:
    """Imports a module, which may be in the current folder."""
    if os.getcwd() not in sys.path and '' not in sys.path:
        sys.path.insert(0, os.getcwd())  # as for python -m
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise UserError(f'{named}: {type(error).__name__}: {error}') from error


def find_own(field: str, name: str, known: Collection[str], form: str, fits: Callable[[Any], bool], kind: str) -> Any:
    """The object that a name 'module:object' stands for, in a module that the program has imported.

    Args:
      field: the field of the config, for messages.
      name: its value, which is not in `known`.
      known: the names that need no module.
      form: how messages write the name of an own object, such as 'MODULE:CLASS'.
      fits: whether an object is of the kind that the field needs.
      kind: that kind, for messages.

    Raises:
      UserError: the name has no module, the module is not imported, or it has no such object.
    """
    module, _, attribute = name.partition(':')
    if not (module and attribute):
        raise UserError(f'{field}={name!r}: choose one of {", ".join(known)}, or {form} of your own')
    if is_missing(name):
        raise UserError(f'{field}={name!r}: {module} is not imported; add --import={module}, or import it first')
    found = getattr(sys.modules[module], attribute, None)
    if not fits(found):
        raise UserError(f'{field}={name!r}: {module} has no {kind} {attribute}')
    return found
