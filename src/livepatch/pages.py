"""What the HTML pages of livepatch share: their frame, their looks, and how foreign text gets into them.

A page needs nothing but itself: no script, no font, no picture, and its policy forbids what the text that it shows
might smuggle in. It is light or dark as the reader's system is, and can be printed.
"""

from __future__ import annotations

import re
from html import escape

#: What a browser would hide, or use to show a line in another order than it is in.
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def document(title: str, style: str, body: str) -> str:
    """A whole page; title and body are HTML, `style` is what it adds to the common looks."""
    return _HTML.format(title=title, style=f"{_STYLE}\n{style}", body=body)


def safe(text: str) -> str:
    """Text for an element or an attribute, all of it visible."""
    return escape(UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text))


def count(number: int, noun: str) -> str:
    """So many of them, in words."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def sentence(text: str) -> str:
    """The same as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


_HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root {
  color-scheme: light dark;
  --back: #fff; --fore: #1d2129; --dim: #667080; --line: #d8dce3; --soft: #f5f6f8;
  --del: #ffebe9; --del2: #ffc9c4; --ins: #e4f8e9; --ins2: #abe9bb; --link: #0b57c2;
  --bad: #b3261e; --late: #9a5b00; --good: #17693a; --none: #596273;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14171c; --fore: #dfe3ea; --dim: #95a0b0; --line: #333a45; --soft: #1c2027;
    --del: #3c1c1e; --del2: #772c2f; --ins: #14301f; --ins2: #1f6237; --link: #86b4ff;
    --bad: #ff9189; --late: #f2b45a; --good: #74d396; --none: #a6afbd;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 100rem; padding: 1.5rem clamp(.75rem, 3vw, 3rem) 4rem;
  background: var(--back); color: var(--fore); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1, h2, h3 { line-height: 1.25; margin: 0; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; }
header p { margin: .25rem 0; color: var(--dim); }
p { margin: .4rem 0; max-width: 60rem; }
small { font-weight: normal; color: var(--dim); }
a { color: var(--link); }
nav { margin: 1rem 0; line-height: 1.8; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: 1rem 0; }
dt span { display: inline-block; min-width: 2.2em; text-align: right; }
dd { margin: 0; color: var(--dim); }
ul { margin: .3rem 0 .6rem; padding-left: 1.2rem; }
section > ul { font-size: .9rem; }
header .verdict { color: inherit; font-weight: 600; padding: .6rem .9rem; border-left: .35rem solid; margin: .8rem 0; }
.verdict { background: var(--soft); }
.verdict.bad { border-color: var(--bad); }
.verdict.good { border-color: var(--good); }
.verdict.none { border-color: var(--none); }
pre, code { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .8rem; }
pre { margin: 0; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; }
details { border: solid var(--line); border-width: 1px 0; }
summary { padding: .1rem .6rem; background: var(--soft); color: var(--dim); font-size: .8rem; cursor: pointer; }
@media print {
  :root {
    --back: #fff; --fore: #000; --dim: #444; --line: #999; --soft: #f2f2f2; --del: #fbe3e1; --del2: #f3b6b1;
    --ins: #e1f4e6; --ins2: #a5dcb4; --link: #000; --bad: #900; --late: #740; --good: #050; --none: #444;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  pre, code { font-size: 7.5pt; }
  pre > *, h2, h3, .verdict { break-inside: avoid; }
  nav { display: none; }
}
""".strip()
