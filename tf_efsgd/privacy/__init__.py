"""The private mechanism: one concept per file, composed by `private_optimizer.py`."""
