"""What builds the site needs packages that the tests do without."""

collect_ignore = ["site.py"]
