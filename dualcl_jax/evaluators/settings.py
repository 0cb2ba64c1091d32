"""Settings of the protocols, with their defaults; set on the command line as --config.knn.k=20,200 and the like."""

from ml_collections import ConfigDict

from dualcl_jax.method.optim import OPTIMIZERS
from dualcl_jax.system.config import BELOW_1, Rule, at_least, between, key_of


def default_settings() -> ConfigDict:
    """Every setting of every protocol. A field's type is that of its default."""
    settings = ConfigDict()
    settings.seed = 0  # for everything that is drawn: validation images, labelled images, noise, initial centres

    settings.knn = knn = ConfigDict()
    knn.k = (1, 5, 20, 200)  # neighbours; every k is measured with every temperature
    knn.temperature = (0.05, 0.1, 0.2)  # τ: votes are weighted by exp(cosine / τ)

    settings.linear = linear = ConfigDict()
    linear.learning_rates = (0.03, 0.1, 0.3, 1.0)  # SGD with momentum, cosine to 0; one is chosen, with the decay
    linear.weight_decays = (0.0, 1e-5, 1e-4, 1e-3)  # likewise
    linear.epochs = 100  # passes over the labelled training images
    linear.batch_size = 256  # examples of a step
    linear.validation = 0.1  # share of the labelled training images for choosing between them

    settings.finetune = finetune = ConfigDict()
    finetune.epochs = 10  # passes over the labelled training images; semi has its own
    finetune.batch_size = 128  # images of a step
    finetune.optimizer = 'sgd'  # sgd | lars | adamw
    finetune.learning_rate = 0.03  # of the last layer, at its peak
    finetune.weight_decay = 1e-4  # added to the gradient, except for adamw, which decouples it
    finetune.layer_decay = 0.8  # each layer learns this many times as fast as the one after it
    finetune.warmup = 0.1  # share of the steps
    finetune.crop_scale = (0.25, 1.0)  # share of the image's area; flips are those of the run's views

    settings.semi = semi = ConfigDict()
    semi.fractions = (0.01, 0.1)  # shares of the labels on which the network is fine-tuned
    semi.epochs = (60, 20)  # passes over the labelled images, for each of the fractions

    settings.few_shot = few_shot = ConfigDict()
    few_shot.shots = (1, 5, 10)  # images of a class
    few_shot.draws = 100  # draws of them; the result is the mean

    settings.retrieval = retrieval = ConfigDict()
    retrieval.recall_at = (1, 5, 10)  # ranks for which recall is measured
    retrieval.path = ''  # for text: file of queries and passages

    settings.clustering = clustering = ConfigDict()
    clustering.starts = 10  # of k-means; the tightest is taken

    settings.structure = structure = ConfigDict()
    structure.images = 10_000  # the most images
    structure.k = 10  # neighbours for the purity

    settings.sts = sts = ConfigDict()
    sts.path = ''  # for text: folder of the sets of semantic similarity

    settings.transfer = transfer = ConfigDict()
    transfer.path = ''  # for text: folder of the sets of sentences with classes
    transfer.folds = 10  # for the sets without a part for testing
    # C of the logistic regression; one is chosen for each set, or in each fold
    transfer.strengths = (0.001, 0.01, 0.1, 1.0, 10.0)
    settings.lock()
    return settings


_COUNT = at_least(1)
_FROM_0 = at_least(0)
_PAIR = at_least(2)
_SHARE: Rule = (lambda value: 0 < value < 1, 'must be above 0 and below 1')
_COUNTS: Rule = (
    lambda values: len(values) > 0 and all(value >= 1 and value == int(value) for value in values),
    'must be whole numbers from 1, such as 1,5,20',
)
_RATES: Rule = (lambda values: len(values) > 0 and all(value > 0 for value in values), 'must be numbers above 0')

RULES: dict[str, Rule] = {
    'seed': (lambda value: 0 <= value < 2**31, 'must be from 0 to 2147483647'),
    'knn.k': _COUNTS,
    'knn.temperature': _RATES,
    'linear.learning_rates': _RATES,
    'linear.weight_decays': (lambda values: len(values) > 0 and min(values) >= 0, 'must be numbers from 0'),
    'linear.epochs': _COUNT,
    'linear.batch_size': _COUNT,
    'linear.validation': _SHARE,
    'finetune.epochs': _COUNT,
    'finetune.batch_size': _COUNT,
    'finetune.optimizer': key_of(OPTIMIZERS),
    'finetune.learning_rate': _FROM_0,
    'finetune.weight_decay': _FROM_0,
    'finetune.layer_decay': (lambda value: 0 < value <= 1, 'must be above 0 and at most 1'),
    'finetune.warmup': BELOW_1,
    'finetune.crop_scale': (
        lambda values: len(values) == 2 and 0 < values[0] <= values[1] <= 1,
        'must be a range in (0, 1], such as 0.25,1',
    ),
    'semi.fractions': (
        lambda values: len(values) > 0 and all(0 < value <= 1 for value in values),
        'must be shares above 0 and at most 1',
    ),
    'semi.epochs': _COUNTS,
    'few_shot.shots': _COUNTS,
    'few_shot.draws': _PAIR,
    'retrieval.recall_at': _COUNTS,
    'clustering.starts': _COUNT,
    'structure.images': _PAIR,
    'structure.k': _COUNT,
    'transfer.folds': between(2, 10),
    'transfer.strengths': _RATES,
}


def make_whole(settings: ConfigDict) -> None:
    """Converts whole numbers in tuples, which a flag gives as floats, to integers."""
    for field, rule in RULES.items():
        if rule is _COUNTS:
            section, _, name = field.partition('.')
            settings[section][name] = tuple(map(int, settings[section][name]))
