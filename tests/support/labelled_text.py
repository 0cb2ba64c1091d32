"""A small labelled set of sentences, and a config that trains a bag of words on it."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import default
from tests.support.text_sets import WORDS, sentence

HOSTILE = '<script>alert(1)</script> [bold]red[/bold] "&{{ 7*7 }}'
"""A sentence that would be markup in HTML, in rich's console or in a template."""
CLASSES = ('[red]first', '<b>second</b>')


def write_sentences(path: Path, count: int = 96) -> Path:
    """A CSV file of sentences of two classes, one word of which shows the class; every eighth begins with `HOSTILE`."""
    rng = np.random.default_rng(0)
    rows = ['sentence,class']
    for number in range(count):
        words = ' '.join([WORDS[number % 2], *sentence(rng, 5)])
        text = (f'{HOSTILE} {words}' if number % 8 == 0 else words).replace('"', '""')
        rows.append(f'"{text}",{CLASSES[number % 2]}')
    path.write_text('\n'.join(rows) + '\n')
    return path


def text_config(data: Path, *, labels: bool = True) -> ConfigDict:
    """A run of a few steps; without labels the sentences have no classes."""
    config = default.get_config()
    config.data.name, config.data.path, config.data.columns = 'text', str(data), 'sentence'
    config.data.label_column, config.data.test_fraction = 'class' if labels else '', 0.3
    config.text.length = 24
    config.views.preset = 'contriever'
    config.model.name, config.model.width, config.model.dim = 'bag', 16, 8
    config.model.projection, config.model.norm, config.model.vocabulary = 'linear', 'sync', 400
    config.queue.size, config.train.batch_size, config.train.steps = 64, 16, 8
    config.log.every_steps, config.checkpoint.every_steps, config.checkpoint.keep = 1, 4, 2
    config.monitor.every_epochs, config.monitor.k = 1, 5
    return config
