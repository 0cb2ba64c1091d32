"""What the programs of `python -m dualcl_jax...` share: a mistake in their flags is a line, and no traceback."""

import argparse
from typing import NoReturn

from dualcl_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` where argparse would print its usage; `prog` must be the command."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}\nsee {self.prog} --help')
