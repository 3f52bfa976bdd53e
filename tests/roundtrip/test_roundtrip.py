"""Random edits of real modules: what a build carries is what a fresh import would give, and disable gives all back.

`LIVEPATCH_EDITS=5000 ./run test --python 3.11 tests/roundtrip` tries more of them, other ones each time.
"""

import ast
import importlib.util
import itertools
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from tests.archive.kit import enabled
from tests.core.kit import clean_up, take_out
from tests.roundtrip.edits import EDITS, edited
from tests.roundtrip.live import Snapshot, alike, beside, functions, imported, unlike

from livepatch.archive import fit, format
from livepatch.build import Build, compare
from livepatch.core import codes, redirect
from livepatch.core.model import LivepatchError

MORE = int(os.environ.get("LIVEPATCH_EDITS", "0"))
#: Modules that may be imported a second time; of packages that are not installed none are taken.
MODULES = (
    *("textwrap", "shlex", "configparser", "string", "heapq", "difflib", "csv", "fnmatch", "calendar", "statistics"),
    *("argparse", "dataclasses", "functools", "contextlib", "queue", "tempfile", "urllib.parse", "http.cookies"),
    *("html.parser", "json.decoder", "email.utils", "pprint", "copy", "random", "fractions", "ipaddress", "uuid"),
    *("graphlib", "optparse", "zipfile", "tarfile", "gettext", "enum", "selectors", "http.client", "types"),
    *("asyncio.queues", "asyncio.locks", "asyncio.streams", "asyncio.tasks", "unittest.mock", "logging.handlers"),
    *("click.types", "click.utils", "click.core", "h11._headers", "h11._connection", "jinja2.filters", "jinja2.utils"),
    *(
        "jinja2.sandbox",
        "flask.helpers",
        "flask.sessions",
        "django.utils.html",
        "django.utils.text",
        "sortedcontainers.sorteddict",
    ),
    *(
        "celery.utils.functional",
        "kombu.utils.url",
        "anyio.abc._streams",
        "uvicorn.protocols.utils",
    ),
    *(
        "attr._make",
        "attr.validators",
        "outcome._impl",
        "sqlparse.lexer",
        "trio._util",
        "trio._channel",
        "wsproto.extensions",
    ),
)
_number = itertools.count()


def sources():
    found = {}
    for name in MODULES:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            # In another layout the compiler may give other code (lines count), and edits change the layout.
            found[name] = ast.unparse(ast.parse(Path(spec.origin).read_bytes())).encode()
    return found


SOURCES = sources()
edits = st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=4)


def carried(old, new, path):
    """What can be carried of the step, or None if that is nothing; and the names that had to be left out."""
    build = Build(compare({path: old}, {path: new}), {path: old}, {path: new})
    module = path.removesuffix(".py").replace("/", ".")
    excluded = set()
    while build.report.refused:
        names = {change.name for change in build.report.refused}
        if not all(names) or names <= excluded:
            event("refused as a whole")
            return None, excluded
        excluded |= names
        build = build.narrowed(exclude=[f"{module}:{name}" for name in excluded])
    if build.report.changes_nothing:
        event("nothing to carry")
        return None, excluded
    event("carried in part" if excluded else "carried whole")
    return build, excluded


def check(build, excluded, live, old, new):
    """The live module, patched, is what a fresh import of the new source gives, save for what is excluded and
    for values, which may be made from that."""
    was, now, fresh = functions(beside(live, old)), functions(live), functions(beside(live, new))
    said = {change.name for change in build.report.changes}
    noted = {change.name for change in build.report.notes}  # only words changed, and they stay
    for path, function in fresh.items():
        name = function.__qualname__
        if name != path.partition(":")[0] or any(name == one or name.startswith(one + ".") for one in excluded):
            continue  # the former: some import-time effect put it there, and what has been done stays
        if path not in now:
            assert any(name == one or name.startswith(one + ".") for one in said), f"{path} is not there"
            continue
        difference = unlike(now[path], function, defaults=not excluded)
        if difference == "code" and name in noted:
            continue
        assert difference is None, f"{path} differs from a fresh import: {difference}"
        if path in was and not codes.same(was[path].__code__, function.__code__):
            assert now[path].__doc__ == function.__doc__, path
    for name, value in vars(beside(live, new)).items() if not excluded else ():
        plain = isinstance(value, str | int | float | bytes | tuple | None)
        if plain and name not in excluded and name not in said and not name.startswith("__"):
            assert alike(vars(live)[name], value), name


def round_trip(name, source, changes, folder):
    new = edited(source, changes)
    number = next(_number)
    package = importlib.util.find_spec(name).parent  # of a package it is this itself: zipfile is one since 3.12
    copy = f"{package}.lp_{number}" if package else f"lp_{number}"
    path = copy.replace(".", "/") + ".py"
    build, excluded = carried(source, new, path)
    if build is None:
        return
    live = imported(copy, source, folder)
    try:
        try:
            beside(live, new)
        except Exception:
            event("the edited module cannot be imported")
            return
        before = Snapshot(live)
        try:
            enabled(fit.bind(format.read(build.archive(f"fix{number}"))))
        except LivepatchError as error:
            event(f"refused when loaded: {str(error).split(':')[0][:40]}")
            assert not before.differences()
            return
        check(build, excluded, live, source, new)
        take_out(f"fix{number}")
        assert not before.differences()
    finally:
        clean_up()
        del sys.modules[copy]
        if package in sys.modules and hasattr(sys.modules[package], f"lp_{number}"):
            delattr(sys.modules[package], f"lp_{number}")
        assert not redirect.redirections


def run(count, names, folder, *, random=False):
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=not random,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(names), edits)
    def property_(name, changes):
        round_trip(name, SOURCES[name], changes, folder)

    property_()


def test_some_edits(tmp_path):
    run(12, [name for name in SOURCES if len(SOURCES[name]) < 30_000], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_edits(part, tmp_path):
    run((MORE or 120) // 4, sorted(SOURCES)[part::4], tmp_path, random=bool(MORE))
