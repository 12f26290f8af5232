"""Knock on one machine: the same template, the same functions, on embedded parts. `python -m local up`."""
