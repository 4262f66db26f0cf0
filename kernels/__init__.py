"""Triton kernels and their launchers, one file per operator, and the tile sizes they ship with."""
