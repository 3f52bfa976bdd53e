"""Who else is told of what a command does: the report that the user asked for, and OpenTelemetry if it is set up."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import click

from livepatch.core.model import LivepatchError
from livepatch.fleet.transaction import Transaction

_KEY = "livepatch.report"


def _writable(ctx: click.Context, option: click.Parameter, report: Path | None) -> None:
    """It is known before anything is touched if the report could not be written."""
    if report is not None and not os.access(report.parent, os.W_OK | os.X_OK):
        raise LivepatchError(errno.EACCES, f"{report} cannot be written: {report.parent} is no folder to write to.")
    ctx.meta[_KEY] = report


#: `--report`, for every command that has a transition; `observe` finds it.
report_option = click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    expose_value=False,
    callback=_writable,
    help="Write an HTML page about it: who moved when and how, who was in the way, in every process.",
)


def observe(transaction: Transaction) -> None:
    """Let them listen to the transaction."""
    report: Path | None = click.get_current_context().meta.get(_KEY)
    if report is not None:
        from livepatch.observe.report import Report

        from .files import replace_file  # which brings tempfile: only here

        # It shows command lines, which may hold what is nobody else's business.
        transaction.observers.append(Report(lambda page: replace_file(report, page, mode=0o600)))
    if any(name.startswith("OTEL_") for name in os.environ):
        from livepatch.observe import spans

        listening = spans.observer() if spans.wanted() else None
        if listening is not None:
            transaction.observers.append(listening)
