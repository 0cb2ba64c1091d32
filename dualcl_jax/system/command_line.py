"""What the programs have in common: a mistake in their flags is a line, and no traceback."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from dualcl_jax.system.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` where argparse would print its usage.

    Args:
      prog: the command, as it is typed.
      description: what it does; its lines stay as they are.
      options: further ones of `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str, description: str | None = None, **options: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, formatter_class=form, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}\nsee {self.prog} --help')

    def parse_with_fields(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Flags, and the fields of a config among them: --config.FIELD=VALUE as 'FIELD=VALUE', in order.

        Raises:
          UserError: an unknown or missing flag, or one with another value.
        """
        flags, rest = self.parse_known_args(arguments)
        for flag in rest:
            if not flag.startswith('--config.'):
                self.error(f'{flag}: no such flag')
            if '=' not in flag:
                self.error(f'{flag}: needs a value, {flag}=VALUE')
        return flags, [flag.removeprefix('--config.') for flag in rest]
