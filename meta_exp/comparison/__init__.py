"""Finished runs side by side: table, charts, report."""
