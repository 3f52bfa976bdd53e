"""How the agent gets into a process, and how an administrator then talks to it.

`processes` looks at a process from outside without touching it, `client` speaks to an agent, and `prepare`
starts a command so that every Python in it has one. `entry` brings one into a process that was not
prepared, by the ways that `way` knows: `remote` and `injector`, whose other end is `helper`. What that does is told in
`injection` and, one layer after the other, `where`, `borrowing`, `symbols`, `tracing`, `processor` with `x86_64` and
`aarch64`.
"""
