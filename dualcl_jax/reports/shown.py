"""How a report shows an example: as a picture, as text, or not at all."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.data import Source
from dualcl_jax.reports.sprite import Sprite
from dualcl_jax.system.kinds import IMAGES

PICTURES, TEXTS = 'pictures', 'texts'
LONGEST = 300
"""Longer texts are cut to this many characters."""


class Shown:
    """Shows examples of the sources of a run.

    Args:
      train: the training split.

    Attributes:
      form: 'pictures' or 'texts'; None if examples of this kind cannot be shown.
      sprite: the pictures shown until now.
    """

    def __init__(self, train: Source) -> None:
        texts = train.display(np.arange(0))
        self.form = PICTURES if train.kind == IMAGES else None if texts is None else TEXTS
        self.sprite = Sprite()

    def show(self, source: Source, indices: NDArray) -> list[dict[str, Any]]:
        """Each of the examples at `indices` [n] as {'tile': its place among the pictures} or {'text': text}."""
        if self.form == PICTURES:
            return [{'tile': tile} for tile in self.sprite.add(source, indices)]
        texts = source.display(indices) if self.form == TEXTS else None
        return [{} for _ in indices] if texts is None else [{'text': shortened(text)} for text in texts]


def shortened(text: str) -> str:
    """A text in one line of at most `LONGEST` characters."""
    line = ' '.join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + '…'
