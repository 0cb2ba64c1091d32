"""Checks this machine's accelerator against stored float64 results: python -m dualcl_jax.selftest."""

import sys

from rich.console import Console
from rich.table import Table

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly

EXIT_FAILED = 1


@exits_cleanly
def main() -> int:
    Parser('python -m dualcl_jax.selftest', __doc__).parse_args()
    from dualcl_jax.system.processes.heartbeat import ending_together
    from dualcl_jax.system.processes.start import start

    start()
    import jax

    from dualcl_jax.training.selftest_cases import CASES, load_cases, run_cases

    with ending_together():
        results = run_cases(load_cases())
    table = Table('case', 'error', 'allowed', 'result', title=f'{jax.device_count()} × {jax.devices()[0].device_kind}')
    for name, (error, passed) in results.items():
        table.add_row(name, f'{error:.2g}', f'{CASES[name][1]:.0e}', 'pass' if passed else 'FAIL')
    Console().print(table)
    failed = [name for name, (_, passed) in results.items() if not passed]
    if failed:
        print(f'error: failed on this machine: {", ".join(failed)}; check its drivers and jax version', file=sys.stderr)
    return EXIT_FAILED if failed else 0


if __name__ == '__main__':
    sys.exit(main())
