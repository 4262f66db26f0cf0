"""The ``d2ls-fast`` command line: one file per command."""
