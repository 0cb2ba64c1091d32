"""Temperature × selection, with the dual view: both make hard negatives count more."""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import ALL, BASE, BUDGET, CONFIG, DUAL_VIEW, FEW_SEEDS, hardest


def get_sweep() -> Sweep:
    return Sweep(
        title='Temperature × selected negatives',
        config=CONFIG,
        base=(*BASE, *DUAL_VIEW),
        arms=tuple(
            Arm(f'{name}-tau_{tau}', (*fields, f'loss.temperature={tau}'), x=tau, series=name)
            for name, fields in (('all', ALL), ('hardest', hardest(0.25)))
            for tau in (0.05, 0.1, 0.2, 0.4)
        ),
        baseline='all-tau_0.1',
        seeds=FEW_SEEDS,
        budget=BUDGET,
        x_label='temperature τ',
    )
