"""Values and tools that everybody uses: no training, no file of a run."""
