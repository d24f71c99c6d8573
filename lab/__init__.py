"""The bench that the scripts share: options, runs, training, seeds, plots.

Scripts import these modules; nothing here imports a script. The method itself is in `utils.py`.
"""
