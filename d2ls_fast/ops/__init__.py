"""The operators: what is computed. One file each, with its definition, schema, fake, gradient and dispatch."""

from d2ls_fast.ops.attend import attend

__all__ = ["attend"]
