"""What the tests of the report's page show on it, and a parser of the page."""

import html.parser
from typing import Any

from tests.support.random_run import STEP

HOSTILE = '</script><img src=x onerror=alert(1)>"\'&{{ 7*7 }}'


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ('style', 'script'):
            self.words.append(data)

    @property
    def text(self) -> str:
        return ' '.join(' '.join(self.words).split())


RECORDS = [
    {'step': 0, 'wall_time_s': 1.0, 'monitor/knn_top1_backbone': 0.25, 'monitor/knn_top1_raw_pixels': 0.3},
    *(
        {'step': step, 'wall_time_s': 1.0 + step, 'train/loss': 4.0 - step / 20, 'train/loss_chance': 3.5}
        for step in range(1, STEP + 1)
    ),
    {'step': STEP, 'wall_time_s': 30.0, 'monitor/knn_top1_backbone': 0.75},
]


def record(protocol: str = 'knn', **fields: Any) -> dict[str, Any]:
    """A record of an evaluation."""
    common = {'metric': 'top1', 'value': 0.6634, 'data_set': 'cifar10', 'split': 'test', 'examples': 10_000, 'step': 9}
    rest = {'encoder': 'query', 'layer': 'backbone', 'k': 20, 'tau': 0.1, 'details': {'rate': 0.03}}
    interval = {'low': 0.64, 'high': 0.68, 'method': 'wilson'}
    common['data_fingerprint'] = 'a' * 64
    return {'protocol': protocol, 'interval': interval, **common, **rest, **fields}
