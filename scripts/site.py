"""What the documentation site does to the pages in docs/, which are also read where the repository is.

A link to a file that is no page (a test, an example, the source) has no target in the site: only its text stays. The
page of the commands gets what `livepatch man` has.
"""

from __future__ import annotations

import re
from typing import Any

from livepatch.cli import manual

_COMMANDS = "<!-- the commands -->"
_OUTSIDE = re.compile(r"\[([^\]\n]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(r"\1", markdown).replace(_COMMANDS, manual.markdown())
