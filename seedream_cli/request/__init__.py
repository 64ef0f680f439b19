"""One validated request: model table, sizes, prices and reference images."""
