"""The benchmark of trust: every defence against every attack on every split over seeds, in cheap cells, all cores busy.

What :mod:`fedplatform.experiments.comparison` is for one setting on a cluster, this is for a table of thousands of
cells on one machine: no run folder and no tracking a cell, a small network, few scans, one process a core.
"""
