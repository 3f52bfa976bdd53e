"""What of the builtins and of the standard library does nothing but compute, so that calling it again disturbs nobody.

A name stands for all that is in it, but for what is named after a minus; with `()`, for itself alone. It is a list of
what is known, not of what is forbidden: what writes, starts, registers, locks or sets anything is not in it. Nor are a
lock, a context variable and a thread's own data: they are values, but who has the old one and who has the new one would
no longer keep out of each other's way, and what the old one holds would be lost unseen.
"""

from __future__ import annotations

import builtins

from livepatch.archive.constructors import MUTATORS

_KNOWN = set("""
    builtins.abs builtins.all builtins.any builtins.ascii builtins.bin builtins.bool builtins.bytearray builtins.bytes
    builtins.callable builtins.chr builtins.complex builtins.dict builtins.dir builtins.divmod builtins.enumerate
    builtins.filter builtins.float builtins.format builtins.frozenset builtins.getattr builtins.globals builtins.hasattr
    builtins.hash builtins.hex builtins.id builtins.int builtins.isinstance builtins.issubclass builtins.iter
    builtins.len builtins.list builtins.locals builtins.map builtins.max builtins.memoryview builtins.min builtins.next
    builtins.object builtins.oct builtins.ord builtins.pow builtins.property builtins.range builtins.repr
    builtins.reversed builtins.round builtins.set builtins.slice builtins.sorted builtins.staticmethod
    builtins.classmethod builtins.str builtins.sum builtins.super builtins.tuple builtins.type builtins.vars
    builtins.zip

    abc array ast.literal_eval ast.parse ast.unparse base64 binascii bisect.bisect bisect.bisect_left
    bisect.bisect_right calendar -calendar.setfirstweekday cmath codecs.lookup codecs.encode codecs.decode
    codecs.getencoder codecs.getdecoder codecs.getincrementalencoder codecs.getincrementaldecoder codecs.getreader
    codecs.getwriter collections colorsys contextlib.AbstractAsyncContextManager contextlib.AbstractContextManager
    contextlib.ContextDecorator contextlib.nullcontext contextlib.suppress copy.copy copy.deepcopy dataclasses.asdict
    dataclasses.astuple dataclasses.field dataclasses.fields dataclasses.is_dataclass dataclasses.replace datetime
    decimal -decimal.localcontext -decimal.setcontext difflib email.header email.utils enum errno fnmatch fractions
    functools.cmp_to_key functools.partial functools.partialmethod functools.reduce hashlib -hashlib.file_digest
    heapq.merge heapq.nlargest heapq.nsmallest hmac.compare_digest hmac.digest hmac.new html http.HTTPMethod
    http.HTTPStatus importlib.metadata.version importlib.util.find_spec inspect.Parameter inspect.Signature
    inspect.cleandoc inspect.getdoc inspect.isclass inspect.iscoroutinefunction inspect.isfunction
    inspect.isgeneratorfunction inspect.signature io.BytesIO io.StringIO ipaddress itertools json.JSONDecoder
    json.JSONEncoder json.dumps json.loads keyword locale.getlocale locale.getpreferredencoding locale.localeconv
    locale.normalize logging.Filter logging.Formatter logging.getLevelName logging.getLogger math ntpath numbers
    operator -operator.call -operator.delitem -operator.iadd -operator.iconcat -operator.setitem
    os.cpu_count os.environ.copy os.environ.get os.environ.items os.environ.keys os.fsdecode os.fsencode os.fspath
    os.getcwd os.geteuid os.getenv os.getpid os.getuid os.path os.pathsep os.sep os.uname os.urandom
    pathlib.Path() pathlib.Path.cwd() pathlib.Path.home() pathlib.PosixPath() pathlib.PurePath pathlib.PurePosixPath
    pathlib.PureWindowsPath platform posixpath pprint.pformat pprint.saferepr quopri random.Random()
    random.SystemRandom() re -re.purge reprlib.repr secrets shlex.join shlex.quote shlex.split sre_compile.compile stat
    statistics string
    stringprep struct sys.exc_info sys.getdefaultencoding sys.getfilesystemencoding sys.getrecursionlimit sys.getsizeof
    sys.intern sysconfig.get_config_var sysconfig.get_config_vars sysconfig.get_path sysconfig.get_paths
    sysconfig.get_platform sysconfig.get_python_version textwrap time.asctime time.ctime time.gmtime time.localtime
    time.mktime time.monotonic time.monotonic_ns time.perf_counter time.perf_counter_ns time.process_time time.strftime
    time.strptime time.struct_time time.time time.time_ns timeit.default_timer token types -types.coroutine typing
    -typing.no_type_check typing_extensions unicodedata urllib.parse -urllib.parse.clear_cache uuid weakref.WeakMethod
    weakref.WeakKeyDictionary weakref.WeakSet weakref.WeakValueDictionary weakref.proxy weakref.ref zlib.adler32
    zlib.compress zlib.crc32 zlib.decompress zoneinfo.ZoneInfo()
""".split())  # noqa: SIM905  # fmt: skip

#: Among these, what gives something else each time: nobody can tell from it what the first one was.
_UNSTEADY = set("""
    builtins.id datetime.date.today datetime.datetime.now datetime.datetime.today datetime.datetime.utcnow os.getpid
    os.urandom random secrets time.asctime time.ctime time.gmtime time.localtime time.monotonic time.monotonic_ns
    time.perf_counter time.perf_counter_ns time.process_time time.strftime time.time time.time_ns timeit.default_timer
    uuid.uuid1 uuid.uuid4
""".split())  # noqa: SIM905  # fmt: skip

#: What calls functions that it is given, by last name.
HIGHER = set("""
    accumulate cmp_to_key defaultdict dropwhile filter filterfalse groupby iter map max merge min nlargest nsmallest
    partial partialmethod reduce sort sorted starmap sub subn takewhile
""".split())  # noqa: SIM905  # fmt: skip

#: Methods of plain values that only compute.
METHODS = set("""
    _asdict _replace as_posix as_tuple as_uri astimezone date digest elements end findall finditer fullmatch getvalue
    group groupdict groups hexdigest is_absolute isocalendar isoformat joinpath match most_common pack quantize
    relative_to safe_substitute search span start strftime sub subn subnets substitute supernet time timestamp timetuple
    tobytes tolist total total_seconds unpack utcoffset utctimetuple weekday with_name with_stem with_suffix
""".split())  # noqa: SIM905  # fmt: skip
METHODS |= {name for kind in (str, bytes, dict, list, tuple, set, frozenset, int, float) for name in dir(kind)}
METHODS -= MUTATORS

#: What makes instances of builtin types.
_MAKERS = {"__init__", "__new__", "from_bytes", "fromhex", "fromkeys", "maketrans"}


def is_known(dotted: str, *, steady: bool = False) -> bool:
    """Whether calling this, by its whole name, only computes; and, if `steady`, gives the same each time."""
    parts = dotted.split(".")
    prefixes = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    if any("-" + prefix in _KNOWN for prefix in prefixes) or (steady and not _UNSTEADY.isdisjoint(prefixes)):
        return False
    thing = getattr(builtins, parts[1], None) if parts[0] == "builtins" else None
    if isinstance(thing, type) and issubclass(thing, BaseException) and not parts[2:]:
        return True
    if parts[0] == "builtins" and parts[2:] and not (len(parts) == 3 and parts[2] in METHODS | _MAKERS):
        return False
    return dotted + "()" in _KNOWN or not _KNOWN.isdisjoint(prefixes)
