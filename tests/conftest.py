"""Settings for every test."""

import pytest
import torch

# The networks of the tests are small: a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Runs go to `runs/` of the working folder, which is a new one for every test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def the_same_draws_whatever_ran_before():
    """Tests are spread over processes, in another order each time."""
    torch.manual_seed(0)
