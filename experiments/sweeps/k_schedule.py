"""The number of negatives over the run: constant, or decreasing from all or increasing from few to a quarter."""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import BASE, BUDGET, CONFIG, DUAL_VIEW, FEW_SEEDS, hardest


def moving(schedule: str, start: float) -> tuple[str, ...]:
    return f'negatives.schedule={schedule}', f'negatives.start_fraction={start}'


def get_sweep() -> Sweep:
    return Sweep(
        title='Schedules of k',
        config=CONFIG,
        base=(*BASE, *DUAL_VIEW, *hardest(0.25)),
        arms=(
            Arm('constant'),
            Arm('linear_from_all', moving('linear', 1.0)),
            Arm('cosine_from_all', moving('cosine', 1.0)),
            Arm('cosine_from_1-16', moving('cosine', 1 / 16)),
        ),
        baseline='constant',
        seeds=FEW_SEEDS,
        budget=BUDGET,
    )
