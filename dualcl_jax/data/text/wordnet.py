"""Pairs from the files of WordNet 3.0, such as those of Debian's package wordnet-base: an entry and its definition."""

import re

COLUMNS = ('entry', 'definition')
FOLDER, PACKAGE = '/usr/share/wordnet', 'wordnet-base'
"""Where Debian's package installs the files."""
FILES = ('data.noun', 'data.verb', 'data.adj', 'data.adv')
"""The files of entries."""


def pair(line: str) -> tuple[str, str] | None:
    """Parses a line: its entry (words and examples) and its definition; None for a line of the licence.

    The format of a line is that of wndb(5WN): fields, which include the words, and after ' | ' the gloss, with the
    examples in quotation marks.

    Example:
      >>> pair('00002684 03 n 02 object 0 physical_object 0 000 | a visible entity; "full of objects"')
      ('object, physical object. full of objects', 'a visible entity')
    """
    if line.startswith(' '):
        return None
    entry, _, gloss = line.strip().partition(' | ')
    fields = entry.split(' ')
    count = int(fields[3], 16)
    words = [re.sub(r'\([a-z]+\)$', '', word).replace('_', ' ') for word in fields[4 : 4 + 2 * count : 2]]
    examples = re.findall(r'"([^"]*)"', gloss)
    return '. '.join([', '.join(words), *examples]), gloss.partition('"')[0].strip(' ;')
