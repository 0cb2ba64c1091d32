"""The model card of an encoder that is exported as a folder."""

from typing import Any

from dualcl_jax.method.describe import describe_training
from dualcl_jax.method.optim import peak_learning_rate
from dualcl_jax.models.exports import Description, TextDescription
from dualcl_jax.models.exports.huggingface_images import has_processor, network_of
from dualcl_jax.system.files import absolute
from dualcl_jax.system.versions import versions
from dualcl_jax.workdir.metrics import SCORES, read_records
from dualcl_jax.workdir.saved_run import SavedRun

OF_TEXT = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, sentence-similarity, feature-extraction]
---
"""
USE_OF_TEXT = """
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer('PATH OF THIS FOLDER')
embeddings = model.encode(['a sentence', 'another one'])
```

The embeddings are not normalised; compare them by their cosine.
"""
OF_IMAGES = """---
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [image-feature-extraction, self-supervised]
---
"""
USE_OF_IMAGES = """
```python
from transformers import AutoImageProcessor, {kind}

processor, model = AutoImageProcessor.from_pretrained(FOLDER), {kind}.from_pretrained(FOLDER{options})
features = model.eval()(**processor(images, return_tensors='pt')).{features}
```

`FOLDER` is the path of this folder. The features are not normalised; compare them by their cosine.
"""
USE_OF_VALUES = """
```python
from transformers import {kind}

model = {kind}.from_pretrained(FOLDER{options})
features = model.eval()(pixel_values=pixels).{features}
```

`FOLDER` is the path of this folder, and `pixels` float32 [N, {channels}, {size}, {size}]: values of {low:g} to {high:g}
scaled to [0, 1] and clipped, less the mean {mean}, divided by {std}, by channel. No image processor of transformers
does this. The features are not normalised; compare them by their cosine.
"""


def model_card(run: SavedRun, description: Description | TextDescription) -> str:
    """The README.md of an exported folder: what the encoder is, how it is used and how it was trained."""
    text = isinstance(description, TextDescription)
    head, use = (OF_TEXT, USE_OF_TEXT) if isinstance(description, TextDescription) else (OF_IMAGES, _use(description))
    rows = ''.join(f'| {name} | {value} |\n' for name, value in _facts(run, description).items())
    return (
        f'{head}# {absolute(run.folder).name}\n\nAn encoder of {"sentences" if text else "images"}, trained with '
        f'momentum contrast by dualcl_jax.\n{use}\n| | |\n|---|---|\n{rows}'
    )


def _use(description: Description) -> str:
    """How the folder of an encoder of images is used."""
    network = network_of(description)
    options = ', add_pooling_layer=False' if network.name == 'ViTModel' else ''
    about: dict[str, Any] = {'kind': network.name, 'options': options, 'features': network.features}
    if has_processor(description):
        return USE_OF_IMAGES.format(**about)
    low, high = description.value_range or (0, 255)
    about |= {'mean': list(description.mean), 'std': list(description.std)}
    return USE_OF_VALUES.format(**about, low=low, high=high, channels=description.channels, size=description.image_size)


def _facts(run: SavedRun, description: Description | TextDescription) -> dict[str, str]:
    """The facts in the record of the run, without paths."""
    config, optimizer = run.config, run.config.optimizer
    if isinstance(description, TextDescription):
        inputs = {'length': f'{description.length} tokens; longer sentences are cut'}
    else:
        shape = '×'.join(map(str, description.images.shape))
        inputs = {'images': f"{shape}; of others, a file's central square, or a whole array, is resized bilinearly"}
    peak = peak_learning_rate(optimizer.learning_rate, config.train.batch_size, optimizer.reference_batch)
    trained = describe_training(config, run.method, run.kind, run.state.params)
    momentum = f'{config.ema.momentum:g}'
    if config.ema.schedule != 'constant':
        momentum += f' at first, {config.ema.schedule} schedule'
    return {
        'output': f'{description.output} of the {description.encoder} encoder, {description.features} numbers',
        'encoder': trained['encoder'],
        **inputs,
        'initial weights': 'of a pretrained encoder' if config.init_from else 'random',
        'data': f'SHA-256 {run.data_fingerprint}',
        'views': config.views.preset,
        'loss': f'InfoNCE, {trained["loss"]}',
        'negatives': trained['negatives'],
        'momentum': momentum,
        'optimizer': f'{optimizer.name}, learning rate {peak:g} at its peak, {optimizer.schedule} schedule, '
        f'weight decay {optimizer.weight_decay:g}',
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
