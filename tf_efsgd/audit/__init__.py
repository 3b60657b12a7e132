"""Empirical lower bounds on epsilon: does the code keep what the accountant promises?

`python -m tf_efsgd.audit` runs the product's own functions many times in the two neighbouring
worlds of the definition, with and without one record, and measures how well the best attack that we
know distinguishes them.
"""
