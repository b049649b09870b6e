"""The benchmarks behind ``scripts/bench``: one module each, and the parts that they share.

Every benchmark starts what it needs on free ports and temporary folders, measures the figure with the fabric and
the direct one without it in turns, and stops everything again.
"""
