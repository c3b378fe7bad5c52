"""Many fits: the runs and where they are carried out, comparisons, sweeps, the reference results
and the paper's numbers.
"""
