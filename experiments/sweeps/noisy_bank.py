"""Selected negatives in a queue of which 30 % are random vectors, at two temperatures, with the dual view.

In all other respects the arms are those of `temperature.py`, so that runs of one seed can be compared with and without
noise.
"""

from experiments.ablation.sweep import Sweep
from experiments.sweeps.shared.cifar10 import BASE, BUDGET, DUAL_VIEW, MORE_SEEDS, all_and_hardest


def get_sweep() -> Sweep:
    return Sweep(
        title='Selected negatives in a queue with 30 % of random vectors',
        config='experiments/sweeps/shared/noisy_bank.py',
        base=(*BASE, *DUAL_VIEW),
        arms=all_and_hardest('tau', 'loss.temperature', (0.1, 0.4)),
        baseline='all-tau_0.1',
        seeds=MORE_SEEDS,
        budget=BUDGET,
        x_label='temperature τ',
    )
