"""The same services, commands and patches as those of the command line."""

from tests.cli.conftest import lp, occupied, patch, service
from tests.observe.conftest import record

__all__ = ["lp", "occupied", "patch", "record", "service"]
