"""The benchmark harness: every speed is a ratio against named baselines, timed in one interleaved run.

Run it with ``d2ls-fast bench [operator|head|model|train|data]``. Installed as ``d2ls_fast.benchmarks``.
"""
