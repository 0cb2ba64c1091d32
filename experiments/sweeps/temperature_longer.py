"""Temperature × selection with small batches and 200,000 passes: does longer training favour a higher temperature?"""

from experiments.ablation.sweep import Sweep
from experiments.sweeps.shared.cifar10 import CONFIG, FEW_SEEDS, LARGE, SETTINGS, UNTUNED, all_and_hardest, key_fields


def get_sweep() -> Sweep:
    return Sweep(
        title='Temperature × selected negatives, 200,000 passes',
        config=CONFIG,
        base=(*UNTUNED, *LARGE, 'loss.symmetric=True', *key_fields(*SETTINGS, orders=2), 'monitor.every_epochs=2'),
        arms=all_and_hardest('tau', 'loss.temperature', (0.1, 0.2, 0.4)),
        baseline='all-tau_0.1',
        seeds=tuple(seed + 50 for seed in FEW_SEEDS),
        budget=200_000,
        x_label='temperature τ',
        measure='probe',
    )
