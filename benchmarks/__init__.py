"""Measures what each path costs, next to the lowest possible cost and to other libraries.

``python -m benchmarks`` measures everything and prints a table. A time in microseconds is valid for one machine at one
moment only. The ratio of two rows that were measured alternately in one process is valid elsewhere too. So budgets are
ratios wherever there is something to compare with.

To measure something new, write a set-up function in a module of `benchmarks.groups`, declare a
`benchmarks.harness.Row` for it, and name the group in ``benchmarks/groups/__init__.py``. `benchmarks.harness` describes
how rows are measured; `benchmarks.events` has the event that every row logs.
"""
