"""Private building blocks of the losses."""
