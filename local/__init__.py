"""Knock on one machine: the same template and functions, on an embedded AWS. `python -m local up`."""
