"""How the agent gets into a process, and how an administrator then talks to it.

`processes` looks at a process from outside without touching it, `client` speaks to an agent, `prepare`
starts a command so that every Python in it has one, and `remote` brings one into a process that was not
prepared.
"""
