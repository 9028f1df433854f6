"""Objects of the cluster as people and scripts see them: rows, whole records, progress. Pure."""
