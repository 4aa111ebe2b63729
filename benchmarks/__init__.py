"""What a path costs, beside the least it could cost and beside what others take for it.

``python -m benchmarks`` runs everything and prints a table. A figure in microseconds says something about one machine
at one moment; a ratio of two rows that took turns in one process travels. So budgets are ratios wherever there is
something to compare with.

To measure something new, write a set-up function in a module of `benchmarks.groups`, declare a
`benchmarks.harness.Row` for it, and name the group in ``benchmarks/groups/__init__.py``. How it is measured
is told in `benchmarks.harness`; the event that every row logs is that of `benchmarks.events`.
"""
