"""Plain MoCo and the full method on larger views, for ten epochs of 20,000 images: two and a half times the passes.

A third arm has the key term alone, which `key_weight.py` found best on validation images; its loss does not use the
queue. Budget and bank of the kNN measurement are those of the peer program in `experiments/README.md`.
"""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import ALL, BASE, CONFIG, DUAL_VIEW, KEY_TERM, MORE_SEEDS, hardest


def get_sweep() -> Sweep:
    full = *DUAL_VIEW, *hardest(0.25), *KEY_TERM
    return Sweep(
        title='MoCo and the full method, 24 pixels, 200,000 passes',
        config=CONFIG,
        base=(*BASE, 'data.image_size=24', 'monitor.bank=0', 'monitor.every_epochs=5'),
        arms=(Arm('moco', ALL), Arm('full', full), Arm('key_term_alone', (*full, 'loss.key_weight=1.0'))),
        baseline='moco',
        seeds=tuple(seed + 10 for seed in MORE_SEEDS),  # fresh seeds: `dual_view.py` chose the method with others
        budget=200_000,
    )
