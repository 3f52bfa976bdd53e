"""Every way in which a Python program holds a function, each as the source of a small module.

`probe()` calls what is to be patched and returns what it met: only "old", in the source as it is. The new version is
the same source with "new" in its place. `stay(gate)` waits at the gate and probes from inside of a patched function.
"""

import textwrap

COMMON = """
import asyncio, contextlib, functools, types, weakref

def drive(awaitable):
    coroutine = awaitable.__await__()
    try:
        while True:
            coroutine.send(None)
    except StopIteration as stop:
        return stop.value

def every(iterator): return list(iterator)

async def collect(iterator): return [met async for met in iterator]

def stay(gate):
    met = ["old", *probe()]
    gate()
    return [*met, *probe()]
"""

#: name -> (functions to patch, source)
SHAPES: dict[str, tuple[tuple, str]] = {
    "plain function": (
        ("f",),
        """
        def f(): return "old"
        def probe(): return [f()]
    """,
    ),
    "arguments of every kind": (
        ("f",),
        """
        def f(a, /, b, c=3, *rest, d, e=5, **more): return "old", a, b, c, rest, d, e, more
        def probe():
            met, *args = f(1, 2, d=4)
            assert args == [1, 2, 3, (), 4, 5, {}]
            _, *args = f(1, b=2, c=0, d=4, e=6, a=7)
            assert args == [1, 2, 0, (), 4, 6, {"a": 7}]
            _, *args = f(1, 2, 3, 4, 5, d=4)
            assert args == [1, 2, 3, (4, 5), 4, 5, {}]
            return [met]
    """,
    ),
    "alias": (
        ("f",),
        """
        def f(): return "old"
        g = f
        names = {"f": f}
        def probe(h=f): return [f(), g(), h(), names["f"]()]
    """,
    ),
    "copy that shares the code": (
        ("f",),
        """
        def f(x="f"): return x, "old"
        g = types.FunctionType(f.__code__, f.__globals__, "g", ("g",))
        def probe():
            (a, first), (b, second) = f(), g()
            assert (a, b) == ("f", "g")
            return [first, second]
    """,
    ),
    "lambda": (
        ("<lambda>",),
        """
        f = lambda x: [x, "old"]
        def probe(): return f(1)[1:]
    """,
    ),
    "recursion": (
        ("f",),
        """
        def f(n): return ["old"] + (f(n - 1) if n else [])
        def probe(): return f(5)
    """,
    ),
    "exception": (
        ("f", "C.__exit__"),
        """
        def f(): raise ValueError("old")
        class C:
            def __enter__(self): return self
            def __exit__(self, kind, error, trace):
                self.met = "old"
                return True
        def probe():
            with C() as c:
                f()
            try:
                f()
            except ValueError as error:
                return [c.met, str(error)]
    """,
    ),
    "comprehensions": (
        ("f",),
        """
        def f():
            word = "old"
            return [word for _ in range(2)] + list({word for _ in range(2)}) + list(word for _ in range(1))
        def probe(): return f()
    """,
    ),
    "method": (
        ("C.m",),
        """
        class C:
            def m(self): return "old"
        c = C()
        bound, unbound = c.m, C.m
        class D(C): pass
        def probe(): return [c.m(), C().m(), bound(), unbound(c), D().m(), getattr(c, "m")()]
    """,
    ),
    "private names": (
        ("C.__m", "C.m"),
        """
        class C:
            __word = "old"
            def __m(self, __x): return __x
            def m(self): return self.__m("old")
        def probe(): return [C().m()]
    """,
    ),
    "static and class methods": (
        ("C.s", "C.c"),
        """
        class C:
            @staticmethod
            def s(): return "old"
            @classmethod
            def c(cls): return cls.__name__, "old"
        class D(C): pass
        kept = C.s, D.c
        def probe():
            assert D.c()[0] == "D"
            return [C.s(), C().s(), C.c()[1], D().c()[1], kept[0](), kept[1]()[1]]
    """,
    ),
    "property": (
        (("C.p", 1), ("C.p", 2), ("C.p", 3)),
        """
        class C:
            @property
            def p(self): return self.word + "/old"
            @p.setter
            def p(self, value): self.word = "old"
            @p.deleter
            def p(self): self.word = "old"
        def probe():
            c = C()
            c.p = "x"
            first = c.p.split("/")
            del c.p
            return first + c.p.split("/")
    """,
    ),
    "only the setter": (
        (("C.p", 2),),
        """
        class C:
            @property
            def p(self): return self.word
            @p.setter
            def p(self, value): self.word = "old"
        def probe():
            c = C()
            c.p = "x"
            return [c.p]
    """,
    ),
    "cached property of a new instance": (
        ("C.p",),
        """
        class C:
            @functools.cached_property
            def p(self): return "old"
        def probe(): return [C().p]
    """,
    ),
    "special methods": (
        ("C.__init__", "C.__len__", "C.__call__", "C.__getattr__", "C.__eq__", "C.__new__"),
        """
        class C:
            def __new__(cls):
                self = super().__new__(cls)
                self.made = "old"
                return self
            def __init__(self): self.word = "old"
            def __len__(self): return len("old") if self.word == "old" else 0
            def __call__(self): return "old"
            def __getattr__(self, name): return "old"
            def __eq__(self, other): return "old"
        def probe():
            c = C()
            assert len(c) in (3, 0)
            return [c.made, c.word, c(), c.absent, c == 1]
    """,
    ),
    "metaclass and class hooks": (
        ("Meta.__call__", "Base.__init_subclass__", "Base.__class_getitem__"),
        """
        class Meta(type):
            def __call__(cls): return [*super().__call__(), "old"]
        class Base:
            def __init_subclass__(cls): cls.word = "old"
            def __class_getitem__(cls, item): return "old"
            def __new__(cls): return []
        class C(Base, metaclass=Meta): pass
        def probe():
            class D(Base): pass
            return [*C(), D.word, Base[1]]
    """,
    ),
    "super": (
        ("B.m", "B.c"),
        """
        class A:
            def m(self): return []
            @classmethod
            def c(cls): return []
        class B(A):
            def m(self): return [*super().m(), "old", __class__.__name__ == "B" and "old"]
            @classmethod
            def c(cls): return [*super().c(), "old"]
        class C(B): pass
        def probe(): return [*B().m(), *C().m(), *B.c(), *C.c()]
    """,
    ),
    "descriptor": (
        ("Word.__get__",),
        """
        class Word:
            def __get__(self, instance, owner): return "old"
        class C:
            word = Word()
        def probe(): return [C.word, C().word]
    """,
    ),
    "decorated with wraps": (
        ("f",),
        """
        def deco(fn):
            @functools.wraps(fn)
            def wrapper(*args): return fn(*args)
            return wrapper
        @deco
        @deco
        def f(x): return "old"
        def probe(): return [f(1)]
    """,
    ),
    "decorated without wraps": (
        ("f", "C.m"),
        """
        def deco(fn):
            return lambda *args: [fn(*args)][0]
        class Keeper:
            def __init__(self, fn): self.fn = fn
            def __call__(self, *args): return self.fn(*args)
        @deco
        def f(x): return "old"
        class C:
            @deco
            def m(self): return "old"
            @Keeper
            def n(): return "kept"
        def probe(): return [f(1), C().m()]
    """,
    ),
    "partial": (
        ("f", "C.m"),
        """
        def f(x, y): return "old"
        g = functools.partial(f, 1)
        class C:
            def m(self, x): return "old"
            n = functools.partialmethod(m, 1)
        def probe(): return [g(2), g(y=3), C().n()]
    """,
    ),
    "registry": (
        ("f", "handler", "<lambda>"),
        """
        handlers, weak = {}, weakref.WeakSet()
        def register(name):
            def keep(fn):
                handlers[name] = (fn, [fn])
                weak.add(fn)
            return keep
        @register("h")
        def handler(): return "old"
        def f(): return "old"
        table = [f, {"f": f}]
        del f
        handlers["l"] = (lambda: "old",) * 2
        def probe():
            weakly = [fn() for fn in weak]
            return [*weakly, handlers["h"][0](), handlers["h"][1][0](), handlers["l"][0](), table[0](), table[1]["f"]()]
    """,
    ),
    "single dispatch": (
        (("_", 1), ("_", 2), "f"),
        """
        @functools.singledispatch
        def f(x): return "old"
        @f.register
        def _(x: int): return "old"
        @f.register
        def _(x: str): return "old"
        def probe(): return [f(1), f(""), f(1.0)]
    """,
    ),
    "cache": (
        ("f", "C.m"),
        """
        import itertools
        number = itertools.count()
        @functools.lru_cache(maxsize=None)
        def f(x): return "old"
        class C:
            @staticmethod
            @functools.cache
            def m(x): return "old"
        def probe(): return [f(next(number)), C.m(next(number))]
    """,
    ),
    "context manager": (
        ("f",),
        """
        @contextlib.contextmanager
        def f():
            met = ["old"]
            try:
                yield met
            finally:
                met.append("old")
        def probe():
            with f() as met:
                pass
            return met
    """,
    ),
    "generator": (
        ("f",),
        """
        def f(n):
            sent = yield "old"
            try:
                yield sent
            except KeyError:
                yield "old"
            return "old"
        def probe():
            gen = f(1)
            met = [next(gen)]
            assert gen.send("sent") == "sent"
            met.append(gen.throw(KeyError()))
            try:
                next(gen)
            except StopIteration as stop:
                met.append(stop.value)
            return met
    """,
    ),
    "generator that is closed": (
        ("f",),
        """
        def f(met):
            try:
                while True: yield "old"
            finally:
                met.append("old")
        def probe():
            met = []
            gen = f(met)
            met.append(next(gen))
            gen.close()
            return met
    """,
    ),
    "delegation between generators": (
        ("f", "g"),
        """
        def f():
            met = yield from g()
            yield met
        def g():
            yield "old"
            return "old"
        def probe(): return every(f())
    """,
    ),
    "coroutine": (
        ("f", "g"),
        """
        async def f(x): return ["old", *await g(x)]
        async def g(x):
            await asyncio.sleep(0)
            return ["old"]
        def probe(): return drive(f(1))
    """,
    ),
    "coroutine that raises": (
        ("f",),
        """
        async def f(): raise ValueError("old")
        async def catch():
            try:
                await f()
            except ValueError as error:
                return [str(error)]
        def probe(): return drive(catch())
    """,
    ),
    "async generator": (
        ("f",),
        """
        async def f():
            yield "old"
            await asyncio.sleep(0)
            yield "old"
        def probe(): return drive(collect(f()))
    """,
    ),
    "async generator that is sent to and closed": (
        ("f",),
        """
        async def f(met):
            try:
                got = yield "old"
                yield got
            finally:
                await asyncio.sleep(0)
                met.append("old")
        async def use():
            met = []
            gen = f(met)
            met.append(await gen.asend(None))
            assert await gen.asend("sent") == "sent"
            await gen.aclose()
            return met
        def probe(): return drive(use())
    """,
    ),
    "async context manager": (
        ("f",),
        """
        @contextlib.asynccontextmanager
        async def f():
            met = ["old"]
            yield met
            met.append("old")
        async def use():
            async with f() as met:
                pass
            return met
        def probe(): return drive(use())
    """,
    ),
    "async methods": (
        ("C.__aenter__", "C.__aiter__", "C.__anext__", "C.__await__", "C.__aexit__"),
        """
        class C:
            async def __aenter__(self): return "old"
            async def __aexit__(self, *error): self.left = "old"
            def __aiter__(self):
                self.n = 0
                return self
            async def __anext__(self):
                self.n += 1
                if self.n > 1: raise StopAsyncIteration
                return "old"
            def __await__(self):
                yield None
                return "old"
        async def use():
            c = C()
            async with c as met:
                pass
            return [met, c.left, await c, *[x async for x in c]]
        def probe(): return drive(use())
    """,
    ),
    "generator-based coroutine": (
        ("f",),
        """
        @types.coroutine
        def f():
            yield
            return "old"
        async def use(): return [await f()]
        def probe(): return drive(use())
    """,
    ),
    "method of a dataclass": (
        ("C.m", "C.__post_init__"),
        """
        import dataclasses
        @dataclasses.dataclass
        class C:
            x: int = 1
            def __post_init__(self): self.word = "old"
            def m(self): return "old"
        def probe(): return [C().m(), C(2).word]
    """,
    ),
    "method of an enum and of a named tuple": (
        ("E.m", "T.m"),
        """
        import enum, typing
        class E(enum.Enum):
            A = 1
            def m(self): return "old"
        class T(typing.NamedTuple):
            x: int
            def m(self): return "old"
        def probe(): return [E.A.m(), E(1).m(), T(1).m()]
    """,
    ),
    "closure": (
        ("make.<locals>.inner",),
        """
        def make(x):
            def inner(y): return x, y, "old"
            return inner
        kept = [make(n) for n in range(3)]
        def probe():
            born = make(3)
            assert [fn(9)[:2] for fn in [*kept, born]] == [(n, 9) for n in range(4)]
            return [fn(9)[2] for fn in [*kept, born]]
    """,
    ),
    "decorator": (
        ("deco.<locals>.wrapper",),
        """
        def deco(fn):
            @functools.wraps(fn)
            def wrapper(*args, **kwargs): return [*fn(*args, **kwargs), "old"]
            return wrapper
        @deco
        def f(x): return []
        def probe():
            @deco
            def g(): return []
            return [*f(1), *g()]
    """,
    ),
    "class in a function": (
        ("make.<locals>.C.m", "make.<locals>.C.__init__"),
        """
        def make(x):
            class C:
                def __init__(self): super().__init__()
                def m(self): return __class__.__name__, x, "old"
            return C
        Kept = make(1)
        kept = Kept()
        def probe(): return [kept.m()[2], Kept().m()[2], make(2)().m()[2]]
    """,
    ),
    "nested coroutine and generators": (
        ("make.<locals>.c", "make.<locals>.g", "make.<locals>.a"),
        """
        def make(x):
            async def c(): return x, "old"
            def g(): yield x, "old"
            async def a():
                yield x, "old"
            return c, g, a
        kept = make(1)
        def meet(c, g, a): return [drive(c())[1], every(g())[0][1], drive(collect(a()))[0][1]]
        def probe(): return [*meet(*kept), *meet(*make(2))]
    """,
    ),
    "lambdas with defaults of their own": (
        ("make.<locals>.<lambda>",),
        """
        def make():
            made = []
            for i in range(3):
                made.append(lambda i=i, *, k=i: (i, k, "old"))
            return made
        kept = make()
        def probe():
            found = [fn() for fn in [*kept, *make()]]
            assert [(i, k) for i, k, _ in found] == [(0, 0), (1, 1), (2, 2)] * 2
            return [met for *_, met in found]
    """,
    ),
    "an outer function and its closure": (
        ("make", "make.<locals>.inner"),
        """
        def make():
            word = "old"
            def inner(): return [word, "old"]
            return inner
        def probe(): return make()()
    """,
    ),
}


def source(shape: str) -> str:
    return COMMON + textwrap.dedent(SHAPES[shape][1])
