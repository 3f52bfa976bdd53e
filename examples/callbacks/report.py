"""Not imported before somebody wants a report."""


def headline() -> str:
    return "Prices, rounded down"
