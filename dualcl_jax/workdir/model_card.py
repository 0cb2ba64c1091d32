"""The model card of an exported encoder of sentences."""

from dualcl_jax.models.exports import TextDescription
from dualcl_jax.system.files import absolute
from dualcl_jax.system.versions import versions
from dualcl_jax.workdir.metrics import SCORES, read_records
from dualcl_jax.workdir.saved_run import SavedRun

HEAD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, sentence-similarity, feature-extraction]
---
"""
USE = """
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer('PATH OF THIS FOLDER')
embeddings = model.encode(['a sentence', 'another one'])
```
"""


def model_card(run: SavedRun, description: TextDescription) -> str:
    """The README.md of an exported folder: what the encoder is, how it is used and how it was trained."""
    rows = ''.join(f'| {name} | {value} |\n' for name, value in _facts(run, description).items())
    return (
        f'{HEAD}# {absolute(run.folder).name}\n\nAn encoder of sentences, trained with momentum contrast by '
        f'dualcl_jax.\n{USE}\nThe embeddings are not normalised; compare them by their cosine.\n\n'
        f'| | |\n|---|---|\n{rows}'
    )


def _facts(run: SavedRun, description: TextDescription) -> dict[str, str]:
    """What the record of the run says, without paths."""
    config, network = run.config, description.architecture
    optimizer, loss = config.optimizer, config.loss
    kind = network['name']
    if kind != 'bag':
        kind = f'{kind} of {network["layers"]} layers, width {network["width"]}, pooling {network["pooling"]}'
    views = 'both views are queries' if loss.symmetric else 'one view is the query'
    return {
        'encoder': f'{kind}; {description.encoder} encoder, {description.output}, {description.features} numbers',
        'length': f'{description.length} tokens; longer sentences are cut',
        'initial weights': 'of a pretrained encoder' if config.init_from else 'random',
        'data': f'SHA-256 {run.data_fingerprint}',
        'views': config.views.preset,
        'loss': f'InfoNCE, temperature {loss.temperature:g}; {views}',
        'negatives': f'{run.method.num_negatives:,} of {config.queue.size or config.train.batch_size:,}',
        'momentum': f'{config.ema.momentum:g}',
        'optimizer': f'{optimizer.name}, learning rate {optimizer.learning_rate:g}, decay {optimizer.weight_decay:g}',
        'training': f'{run.step:,} steps of {config.train.batch_size:,} examples, seed {config.seed}',
        **_measured(run),
        'versions': ', '.join(f'{name} {version}' for name, version in versions().items()),
    }


def _measured(run: SavedRun) -> dict[str, str]:
    """The last values of the loss and the scores until the step of the checkpoint."""
    found: dict[str, str] = {}
    for record in read_records(run.folder / 'metrics.jsonl'):
        if record['step'] <= run.step:
            values = {name: record.get(name) for name in ('train/loss', *SCORES)}
            found |= {
                name: f'{value:.4g} (step {record["step"]:,})' for name, value in values.items() if value is not None
            }
    return found
