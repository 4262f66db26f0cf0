"""Everything that is to be done on a machine with a GPU, in one command: ``make gpu`` or ``bash benchmarks/gpu.sh``.

Builds, tests, measures against the aims, looks for memory errors and reads counters; see docs/gpu.md. The runner
(``__main__``, ``steps``, ``plan``, ``table``, ``summary``) needs Python alone, as it also builds the package.
"""
