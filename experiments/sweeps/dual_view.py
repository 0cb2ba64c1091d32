"""Dual view × selected negatives × key term: twelve arms, five seeds. The baseline is plain MoCo."""

from itertools import product

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import ALL, BASE, BUDGET, CONFIG, DUAL_VIEW, KEY_TERM, MORE_SEEDS, hardest

VIEWS = {'one_way': (), 'dual_view': DUAL_VIEW}
SELECTION = {'all': ALL, 'hardest': hardest(0.25)}
KEY_TERMS = {
    'none': (),
    'batch': KEY_TERM,
    'queue': ('loss.key_term=queue', 'loss.key_weight=0.5'),
}


def get_sweep() -> Sweep:
    arms = tuple(
        Arm(
            f'{views}-{selection}-key_{term}',
            VIEWS[views] + SELECTION[selection] + KEY_TERMS[term],
            # An effect measured on top of a term that ruins the encoder would not be informative.
            levels=(views, selection, f'key_{term}') if term != 'queue' else (),
        )
        for views, selection, term in product(VIEWS, SELECTION, KEY_TERMS)
    )
    return Sweep(
        title='Dual view × selected negatives × key term',
        config=CONFIG,
        base=BASE,
        arms=arms,
        baseline='one_way-all-key_none',
        seeds=MORE_SEEDS,
        budget=BUDGET,
    )
