"""Each prints ratios against a plain reference."""
