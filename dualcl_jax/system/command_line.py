"""Flag parsing shared by all programs: a wrong flag produces a one-line error and no traceback."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from dualcl_jax.system.errors import UserError

COMMAND = 'dualcl'
"""The installed command. It puts its own name and that of its subcommand into `sys.argv[0]`."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` where argparse would print its usage.

    Args:
      prog: the command as the user types it, unless it is a subcommand of `COMMAND`.
      description: what the program does; its line breaks are kept.
      options: further options of `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str, description: str | None = None, **options: Any) -> None:
        prog = sys.argv[0] if sys.argv[0].startswith(f'{COMMAND} ') else prog
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, formatter_class=form, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}\nsee {self.prog} --help')

    def add_import(self) -> None:
        """Adds the flag --import, for `dualcl_jax.system.user_modules.import_own`."""
        self.add_argument(
            '--import',
            dest='own',
            action='append',
            default=[],
            metavar='MODULE',
            help='your module that defines the network or the selector of the run; repeat the flag for more',
        )

    def parse_with_fields(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parses flags, and collects each --config.FIELD=VALUE as 'FIELD=VALUE', in order.

        Raises:
          UserError: a flag is unknown or missing, or has an invalid value.
        """
        flags, rest = self.parse_known_args(arguments)
        for flag in rest:
            if not flag.startswith('--config.'):
                self.error(f'{flag}: no such flag')
            if '=' not in flag:
                self.error(f'{flag}: needs a value, {flag}=VALUE')
        return flags, [flag.removeprefix('--config.') for flag in rest]
