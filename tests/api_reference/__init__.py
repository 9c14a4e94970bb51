"""The site with the API reference: what its pages hold, and how docstrings become HTML."""
