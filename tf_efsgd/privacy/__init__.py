"""The private mechanism: one concept per file, composed by `optimizer.py`."""
