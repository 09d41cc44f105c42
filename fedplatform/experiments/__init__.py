"""Experiments: from settings to a finished run, its tables and its report."""
