"""The entries of the catalogue, one file for each family of losses."""
