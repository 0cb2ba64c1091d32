"""What an evaluation printed."""

import json
from typing import Any

from dualcl_jax.evaluators.records import check_record
from tests.support.runs import Finished


def printed_records(finished: Finished) -> list[dict[str, Any]]:
    """The records of the last line, after a check of each."""
    assert finished.status == 0, finished
    found = json.loads(finished.out.splitlines()[-1])['records']
    for record in found:
        check_record(record)
    return found
