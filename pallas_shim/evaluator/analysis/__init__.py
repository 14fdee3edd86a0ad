"""Analyses that passes ask: alias and mod-ref, memory versions, liveness, dependence, ranges."""
