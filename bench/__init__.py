"""The figures of Knock on one machine: `make bench`. docs/benchmarks.md says how to read them."""
