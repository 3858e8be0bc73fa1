"""Films and their labels: readers of data sets, curation, images."""
