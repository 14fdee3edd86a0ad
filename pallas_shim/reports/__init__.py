"""The report: what ran, how and why, of one process or of many."""
