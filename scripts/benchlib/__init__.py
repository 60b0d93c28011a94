"""Benchmarks of qcowdelta against its peers; run by scripts/bench.

Only the standard library is used, and little of it: the peak memory the kernel reports for a child
starts at that of the process which started it, so this one has to stay small.
"""
