"""The numbers that livepatch promises, measured: `./run bench`, or `python -m bench NAME` for one row.

Nothing here is a test. Machines differ and are noisy, so whatever can be is a ratio or a difference within one run: the
two sides take turns in many rounds of a millisecond or less, and the rounds in which nobody else had the processor
count, which are taken to be the fastest tenth. What has to be an absolute time is the median of several tries. Every
row runs in a process of its own, with nothing of the others on its heap.
"""
