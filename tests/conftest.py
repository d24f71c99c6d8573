"""Settings for every test."""

import torch

# The networks of the tests are small: a second thread costs more than it brings.
torch.set_num_threads(1)
