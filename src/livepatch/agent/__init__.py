"""The agent: livepatch's one thread in a patched process.

It is the core's driver (the core starts no thread of its own): a pending transition wakes it, and it
makes the rounds. With `start_agent()` it also listens on a Unix socket for the commands of an
administrator.

`process.py` has the one of this process. This file imports nothing: a command needs only what both ends must know.
"""

#: Of the protocol and of what the methods mean; a client speaks to agents of its own number only.
PROTOCOL = 1
