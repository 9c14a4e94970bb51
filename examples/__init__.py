"""One file per example, each to be read from top to bottom; `python -m examples` runs those on one device."""
