"""A service and the command line, for everything in here."""

import pytest
from tests.faults.kit import Faulty, Service


@pytest.fixture
def lp(tmp_path):
    return Faulty(tmp_path)


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path) as running:
        yield running
