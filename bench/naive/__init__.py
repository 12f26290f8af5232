"""Naive functions, written without regard for cold starts, to compare Knock's own functions with."""
