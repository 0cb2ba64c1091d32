"""Which negatives: the 1,024 hardest of 4,096, those after the very hardest, 1,024 at random, or all, reweighted.

Reweighting all negatives by exp(β·s/τ) is the alternative to selection in the literature (2010.04592). All arms use the
dual view.
"""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import ALL, BASE, BUDGET, CONFIG, DUAL_VIEW, FEW_SEEDS

SHARE = 'negatives.fraction=0.25'  # 1,024 of 4,096


def get_sweep() -> Sweep:
    arms = [Arm('all', ALL), Arm('top_k', ('negatives.selector=auto', SHARE))]
    arms += [
        Arm(f'ring_after_{skip}', ('negatives.selector=ring', SHARE, f'negatives.skip={skip}'))
        for skip in (41, 128, 410)
    ]
    arms.append(Arm('random', ('negatives.selector=random', SHARE)))
    arms += [Arm(f'reweighted_{beta}', (*ALL, f'loss.hardness={beta}')) for beta in (0.25, 0.5, 1.0)]
    return Sweep(
        title='Selectors at equal k, and reweighting by hardness',
        config=CONFIG,
        base=(*BASE, *DUAL_VIEW),
        arms=tuple(arms),
        baseline='all',
        seeds=FEW_SEEDS,
        budget=BUDGET,
    )
