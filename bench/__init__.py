"""Benchmarks: `python -m bench`, `aigc-engine bench` or `pytest bench --benchmark-only`."""
