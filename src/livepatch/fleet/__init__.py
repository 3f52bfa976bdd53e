"""Several processes that are patched, or taken back, together.

`selection` says which processes are meant, and looks again for those that are born in the middle; `members`
asks all of them at once; `transaction` begins in all of them, and if one refuses, stalls or is given up, brings all
of them back.

What is promised, and what is not: in every process the consistency is its own, and there is no instant at which
all of them change. While a transaction runs, one process may be patched and the next one not yet; two of them that
talk to each other meet in both versions. Before the first process is touched each has been asked whether the
patch fits; afterwards either all of them have it, or none, or it has been said which and why.
"""
