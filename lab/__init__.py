"""What several scripts share, by rooms; CONTRIBUTING.md says what belongs in which.

Scripts import these modules; nothing here imports a script. The method itself is in `utils.py`.
"""
