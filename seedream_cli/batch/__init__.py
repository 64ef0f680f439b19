"""A table of requests as a stream of jobs: read, checked, run, gone on with, and told as a table of results."""
