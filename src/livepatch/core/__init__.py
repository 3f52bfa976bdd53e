"""What runs inside the patched process: standard library only, and it starts no thread of its own.

Read `transition.py` for the consistency model, `redirect.py` for how a call reaches a version, and
`registry.py` for the life cycle that ties them together. This file imports nothing, see `livepatch/__init__.py`.
"""
