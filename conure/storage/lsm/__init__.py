"""The LSM engine: changes in memory, everything else in files that are never changed."""
