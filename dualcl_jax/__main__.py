"""The command `dualcl`, with one subcommand for each program. `python -m dualcl_jax` runs it, too."""

import importlib
import sys

from dualcl_jax.system.command_line import COMMAND
from dualcl_jax.system.errors import UserError, exits_cleanly
from dualcl_jax.system.versions import VERSION

COMMANDS = {
    'train': ('main', 'trains an encoder, or resumes a run'),
    'evaluate': ('evaluate', 'evaluates an encoder: kNN, linear probe and more'),
    'embed': ('embed', 'writes the features of images or sentences to a file'),
    'export': ('export', 'writes the encoder of a run to one file'),
    'report': ('report', 'writes an HTML report of a run, or of up to six'),
    'prepare': ('prepare', 'prepares a TFDS set, or packs a folder of images'),
    'compile': ('compile', 'compiles a step for devices that need not be present, and reports whether it fits'),
    'selftest': ('selftest', 'checks the accelerator of this machine'),
}
"""The module of each subcommand, and what it does."""


def usage() -> str:
    """The help text of the command itself."""
    lines = [f'  {name:<10}{what}' for name, (_, what) in COMMANDS.items()]
    return '\n'.join(
        [
            f'usage: {COMMAND} COMMAND [--FLAG=VALUE ...]',
            '',
            *lines,
            '',
            f'{COMMAND} COMMAND --help lists the flags of a command.',
            f'First run: {COMMAND} train --config=quickstart --workdir=runs/quickstart (needs the extra [demo])',
        ]
    )


@exits_cleanly
def main() -> int:
    """Runs the program that the first argument names, with the other arguments."""
    given = sys.argv[1:]
    if given and given[0] in COMMANDS:
        sys.argv = [f'{COMMAND} {given[0]}', *given[1:]]
        return importlib.import_module(f'dualcl_jax.{COMMANDS[given[0]][0]}').main()
    if given in (['--version'], ['-V']):
        print(f'dualcl_jax {VERSION}')
        return 0
    if not given or given[0] in ('-h', '--help', 'help'):
        print(usage())
        return 0
    raise UserError(f'{given[0]}: no such command; choose one of {", ".join(COMMANDS)}')


if __name__ == '__main__':
    sys.exit(main())
