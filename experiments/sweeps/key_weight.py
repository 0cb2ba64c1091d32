"""Weight w of the term anchored at the key, against the batch, for the dual view with the hardest quarter."""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import BASE, BUDGET, CONFIG, DUAL_VIEW, FEW_SEEDS, hardest


def get_sweep() -> Sweep:
    weights = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    return Sweep(
        title='Weight of the key term',
        config=CONFIG,
        base=(*BASE, *DUAL_VIEW, *hardest(0.25), 'loss.key_term=batch'),
        arms=tuple(Arm(f'w_{weight}', (f'loss.key_weight={weight}',), x=weight) for weight in weights),
        baseline='w_0.0',
        seeds=FEW_SEEDS,
        budget=BUDGET,
        x_label='key weight w',
    )
