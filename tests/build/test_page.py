"""The report as a page: what is on it, where, and that no source can break it."""

import re
from html.parser import HTMLParser

import pytest
from tests.build.kit import files

from livepatch.build import from_step
from livepatch.build.page import page
from livepatch.build.sources import Tree
from livepatch.build.steps import Step

VOID = {"meta"}
#: Elements that a browser ends by itself where another block begins, so that wrong nesting is not seen.
FLOW = {"p": {"p", "ul", "div", "pre", "section", "article", "h2", "h3", "details", "dl"}}


class Page(HTMLParser):
    """The text of a page by the element around it, with everything wrong that a browser would mend."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.texts, self.attributes, self.tags, self.ids = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert not any(tag in FLOW.get(around, ()) for around in self.open), (tag, self.open)
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(([*self.open], data))

    def of(self, tag):
        return [text for around, text in self.texts if tag in around]

    @property
    def text(self):
        return "".join(text for around, text in self.texts if "style" not in around)

    def section(self, title):
        """The text from a heading to the next of its kind."""
        found = "".join(f"\1{text}\0" if around[-1:] == ["h2"] else text for around, text in self.texts)
        return next((part.partition("\0")[2] for part in found.split("\1") if part.startswith(f"{title}\0")), "")


def made(old, new, name="fix"):
    build = from_step(Step(Tree.sort(files(old)), Tree.sort(files(new))))
    return page(build, name, "some/folder/fix.livepatch")


OLD = """\
__version__ = "1"
LIMIT = 1
class C:
    def __init__(self): pass
    def f(self):
        a = 1
        b = 2
        c = 3
        d = 4
        e = 5
        g = 6
        h = 7
        return LIMIT
def gone(): pass
print("imported")
"""
NEW = """\
__version__ = "2"
LIMIT = 2
class C:
    def __init__(self): pass
    def f(self):
        a = 1
        b = 2
        c = 3
        d = 4
        e = 5
        g = 6
        h = 7
        return LIMIT + 1
def new(): return 1
"""


def test_a_page_from_top_to_bottom():
    html = made(OLD, NEW)
    found = Page(html)
    assert found.of("title") == ["fix: There is no archive: 1 difference cannot be carried."]
    assert found.of("h1") == ["fix"]
    assert found.of("h2") == ["Refused", "Not consistent", "pkg.m", "Notes"]
    assert "`print('imported')` is gone, but what it did remains" in found.section("Refused")
    assert "What to do: restart the process for this, or leave it out" in found.section("Refused")
    late = found.section("Not consistent")
    assert "These changes are not consistent." in late
    assert '__version__ = "1"' in late.replace("\n", "")
    module = found.section("pkg.m")
    assert "changed method C.f: body" in module
    assert "value constant LIMIT: its value changed" in module
    assert "added function new: new" in module
    assert "Shown above: __version__, statement." in module
    assert "gone; it is left in place" in found.section("Notes")
    assert "old, lines 5–13" in module  # noqa: RUF001
    assert found.ids == list(dict.fromkeys(found.ids))
    links = [value for name, value in found.attributes if name == "href"]
    assert {link[1:] for link in links} <= set(found.ids)


def test_old_and_new_side_by_side():
    html = made(OLD, NEW)
    assert '<del data-n="13">        return LIMIT</del>' in html
    assert '<ins data-n="13">        return LIMIT<mark> + 1</mark></ins>' in html
    (folded,) = re.findall(r"<details>.*?</details>", html, re.DOTALL)
    assert "<summary>4 lines are the same</summary>" in folded
    assert folded.count("<span data-n=") == 2 * 4
    # Nothing that differs is folded, and all that is there is shown, on the side that it belongs to.
    assert "<del" not in folded
    assert "<ins" not in folded
    article = next(part for part in html.split("<article")[1:] if "method C.f" in part)
    for side, source in (("old", OLD), ("new", NEW)):
        lines = "".join(re.findall(rf'<pre class="{side}">(.*?)</pre>', article, re.DOTALL))
        shown = re.findall(r'<(\w+) data-n="(\d+)">(.*?)</\1>', lines)
        texts = {int(number): re.sub("<.*?>", "", text) for _, number, text in shown}
        assert texts == dict(enumerate(source.splitlines()[4:13], 5))


def test_a_patch_that_can_be_carried_and_one_that_changes_nothing():
    carried = Page(made("def f(): return 1\n", "def f(): return 2\n"))
    assert "The patch is in fix.livepatch: 1 change in 1 module." in carried.text
    assert carried.of("h2") == ["pkg.m"]
    nothing = Page(made("def f(): return 1\n", "def f(): return 1  # one\n"))
    assert "There is no archive: nothing changes for a running process." in nothing.text
    assert nothing.of("h2") == []


HOSTILE = [
    "</script><script>alert(1)</script>",
    "</style></pre></body></html>",
    "<!-- <![CDATA[ ]]> <?x",
    "&lt; &amp; &#60; &",
    "\"'> onload=alert(1) <img src=x onerror=alert(1)>",
    "{title} {style} {body} %s {0.__class__} \\1",
    "http://example.net/x.css",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_source_breaks_the_page(text):
    """As a constant, in a refusal, in a comment, and as the name of the patch."""
    body = f"    # {text}\n    return {text!r}"
    old = f"X = {text!r}\nprint({text!r})\ndef f():\n{body}\n"
    html = made(old, f"X = {text + '!'!r}\ndef f():\n{body} + X\n", name=text)
    plain = made(OLD, NEW)
    found = Page(html)
    assert found.of("h1") == [text]
    assert f"return {text!r}" in found.text
    assert set(found.tags) <= set(Page(plain).tags) | {"h3", "mark", "i"}
    assert {name for name, _ in found.attributes} <= {name for name, _ in Page(plain).attributes}
    assert "".join(found.of("style")) == "".join(Page(plain).of("style"))


def test_the_page_needs_nothing_but_itself():
    html = made(OLD, NEW)
    found = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(found.tags)
    assert not re.search(r"url\(|@import|https?:|//", html)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes
    assert all(value.startswith("#") for name, value in found.attributes if name in ("href", "src"))


def test_what_a_browser_would_hide_is_shown():
    """Text that runs the other way (CVE-2021-42574), spaces without width, control characters, half a character."""
    html = made("def f(): return 1\n", "def f():\n    '\u202e\u2066\u200b\ufeff\x0c\x1b\xa0\\u202e'\n    return 2\n")
    assert not re.search("[\u202e\u2066\u200b\ufeff\x0c\x1b\xa0]", html)
    assert r"<i>\u202e</i><i>\u2066</i><i>\u200b</i><i>\ufeff</i><i>\x0c</i><i>\x1b</i><i>\xa0</i>\u202e" in html
    odd = made({"pkg/a\udcff.py": "def f(): return 1\n"}, {"pkg/a\udcff.py": "def f(): return 2\n"})
    assert odd.encode()
    assert r"a\udcff.py" in odd


def test_the_same_build_gives_the_same_bytes():
    modules = {f"pkg/m{i}.py": OLD for i in range(5)}
    changed = dict.fromkeys(modules, NEW)
    assert made(modules, changed) == made(dict(reversed(modules.items())), dict(reversed(changed.items())))


@pytest.mark.parametrize("content", ["def f(:\n", "\0", "if 1:\n" * 120, ""])
def test_what_this_python_cannot_compile(content):
    found = Page(made({"m.py": "x = 1\n"}, {"m.py": content}))
    assert "There is no archive" in found.text


def test_a_table_of_thousands_of_lines_is_folded():
    lines = [f"    {n},\n" for n in range(20_000)]
    old = "T = [\n" + "".join(lines) + "]\ndef f(): return T\n"
    lines[10_000] = "    -1,\n"
    html = made(old, "T = [\n" + "".join(lines) + "]\ndef f(): return T\n")
    shown = re.sub(r"<details>.*?</details>", "", html, flags=re.DOTALL)
    assert shown.count("data-n") < 50
    assert '<del data-n="10002">    10000,</del>' in shown


def test_what_was_left_out_and_what_no_service_imports():
    old = {"pkg/m.py": OLD, "pkg/tests/test_m.py": "print(1)\n"}
    new = {"pkg/m.py": NEW, "pkg/tests/test_m.py": "print(2)\n"}
    build = from_step(Step(Tree.sort(files(old)), Tree.sort(files(new))))
    found = Page(page(build.narrowed(exclude=["pkg.m:", "*:C.f"]), "fix", "fix.livepatch"))
    assert found.of("h2") == ["Not consistent", "pkg.m", "Notes", "Left out", "Not carried"]
    assert "method C.f: left out on request (carried)" in found.section("Left out")
    assert "`print('imported')` is gone" in found.section("Left out")
    assert "pkg/tests/test_m.py:1: no service imports this module" in found.section("Not carried")


def test_what_tasks_see_of_the_other_world_is_not_called_late():
    old = "import enum\nclass E(enum.Enum):\n    A = 1\n"
    late = Page(made(old, old + "    B = 2\n")).section("Not consistent")
    assert "With the others, a task can see something of the other world" in late
    assert "added attribute E.B: a new member, which old code sees only when" in late
    assert "With the others" not in Page(made(OLD, NEW)).section("Not consistent")
