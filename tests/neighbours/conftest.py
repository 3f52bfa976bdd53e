"""livepatch beside others: the same rules as in the core, so every test leaves the process as it found it."""

from tests.core.conftest import garbage, held, module, nothing_stays, rounds_by_hand, worker  # noqa: F401
