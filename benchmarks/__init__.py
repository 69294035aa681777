"""Measurements, each reproducible by a command. Benchmarks measure; they assert no time."""
