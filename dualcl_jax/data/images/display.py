"""Names of files as they are shown."""

import os


def shown(name: str) -> str:
    """Converts a name for terminals, reports and tables: always valid UTF-8 and in one line.

    File systems allow any bytes in a name. Those that are not UTF-8 are written as escapes such as \\xe9, which keeps
    different names different.
    """
    text = os.fsencode(name).decode('utf-8', 'backslashreplace')
    return text.replace('\r', '\\r').replace('\n', '\\n')
