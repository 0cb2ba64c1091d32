"""Data that a run keeps in its workdir: arrays and sentences that were given in Python."""

import re

from etils import epath

_NAME = re.compile(r'data-[0-9a-f]{16}\.(npz|jsonl)')


def kept_name(digest: str, ending: str) -> str:
    """The name of a file with a content, of which `digest` is a hex digest: other content never replaces it."""
    return f'data-{digest[:16]}{ending}'


def kept_data(workdir: epath.Path, path: str) -> str:
    """The path of a file of data: that in the workdir if it is kept there, wherever the workdir is now.

    Files with a name of `kept_name` have the same content in every folder.
    """
    here = workdir / path.rpartition('/')[2]
    return str(here) if _NAME.fullmatch(here.name) and here.exists() else path
