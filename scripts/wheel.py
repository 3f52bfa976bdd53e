"""What a wheel has besides the package: the manual page, where man(1) looks for it once the wheel is installed.

Hatchling runs this when it builds a wheel. The page is what `livepatch man` prints, so it cannot be older than the
rest. An editable install has no page: it would be out of date with the next change of the source.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualPage(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()  # until this here is gone, which the build is before
        page = Path(self._folder.name) / "livepatch.1"
        ours = os.pathsep.join([str(Path(self.root) / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-B", "-m", "livepatch", "man"]
        made = subprocess.run(command, env={**os.environ, "PYTHONPATH": ours}, check=True, stdout=subprocess.PIPE)
        page.write_bytes(made.stdout)
        build_data["shared_data"][str(page)] = "share/man/man1/livepatch.1"
