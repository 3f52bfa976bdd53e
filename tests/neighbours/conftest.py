"""livepatch beside others: the same rules as in the core, so every test leaves the process as it found it."""

import sys

from tests.archive.conftest import package  # noqa: F401
from tests.core.conftest import garbage, held, module, nothing_stays, rounds_by_hand, worker  # noqa: F401
from tests.neighbours.traced import files  # noqa: F401

# Not before 3.12.
collect_ignore = [] if hasattr(sys, "monitoring") else ["test_monitoring.py"]
