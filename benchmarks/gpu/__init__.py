"""What a GPU computes, held against the CPU, and how long it takes; ``benchmarks/gpu.sh`` runs it."""
