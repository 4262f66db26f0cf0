"""What every shipped Triton configuration takes of a GPU, compiled ahead of time: no GPU is needed.

``python -m d2ls_fast.benchmarks.triton_resources`` (or ``make resources``) renews the committed table
``benchmarks/results/triton_resources.md`` and ``.json``; ``tests/benchmarks/test_triton_resources.py`` fails where they
are not those of the present kernels and tiles.
"""
