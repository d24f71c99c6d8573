"""What every script stands on: options, run folders, the training loop, plots, seeds, exit codes.

Holds no data, network or measure. The other rooms may use this one.
"""
