"""The package below the entry points: what a grant is, and the order of calls that keeps it honest."""
