"""A process that is vulnerable: imports a proof of concept and answers questions about it, one a line.

usage: target.py POC     Each line on standard input is the name of a function of the proof of concept, or `pid`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys

spec = importlib.util.spec_from_file_location("poc", sys.argv[1])
poc = importlib.util.module_from_spec(spec)
sys.modules["poc"] = poc
spec.loader.exec_module(poc)
answers = sys.stdout
sys.stdout = sys.stderr  # whatever the packages print
for line in sys.stdin:
    question = line.strip()
    result = os.getpid() if question == "pid" else getattr(poc, question, lambda: None)()
    print(json.dumps(result), file=answers, flush=True)
