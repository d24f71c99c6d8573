"""Accuracies above which we say what a network has come to."""

MEMORISED = 0.99  # on the training points
GENERALISED = 0.85  # on test points, as in Table 1
GROKKED = 0.95  # on test points
