"""The command `livepatch`.

`app` has the list of commands and turns errors into one sentence and an exit status, `common` the options
and the output they share, `settle` waits for a transition; the commands themselves are in files by what
they are about, and a file is imported only when one of its commands is used: most of a short command's
time is imports.

Exit status: 0 done, 1 refused, 2 usage, 3 stalled (and what was done about it was said), 4 no such
process or no access, 130 interrupted. `livepatch run` becomes the command, so its status is the
command's; 127 if there is no such command and 126 if it cannot be executed, as with `env`.
"""

from __future__ import annotations

import gc
import importlib.util
import sys


def main() -> None:
    """The command; always ends with SystemExit.

    A fifth of a short one's time would go into looking for garbage, while there is none yet, as everything is being
    imported (`Commands.get_command` is the end of that), and once more in all of it when the process ends.
    """
    gc.disable()
    missing = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"livepatch: the command line needs {' and '.join(missing)}; install it with: pip install 'livepatch[cli]'"
        )
    from .app import run

    status = run(sys.argv[1:])
    gc.freeze()
    sys.exit(status)
