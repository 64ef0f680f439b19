"""One validated request: the models' rows, sizes, prices and reference images."""
