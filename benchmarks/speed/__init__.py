"""This project and its peers on the same work, in turns: ``python -m benchmarks.speed`` (docs/performance.md)."""
