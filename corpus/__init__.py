"""Real security releases, each gone through in a live process: `./run corpus`, or `python -m corpus CASE`.

A case is a folder with `case.json`, which names a package, its vulnerable and its fixed release and exact pins of
all that these need, and `poc.py`, whose `vulnerable()` shows harmlessly whether the process it runs in is. Thirty
are in `tests/cve/cases`; `--cases DIR` takes any other folder of them. Nothing here knows any package.

`case.py` is the course of one case, through the command line as a user types it; `target.py` is the vulnerable
process, which also notes what the package consisted of before the patch and says afterwards what did not come back;
`table.py` shows what came out.
"""
