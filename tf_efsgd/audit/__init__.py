"""Empirical lower bounds on epsilon: does the code keep what the accountant says?

`python -m tf_efsgd.audit` plays the two neighbouring worlds of the definition, with and without
one record, many times through the product's own functions, and asks how well the best attack we
know tells them apart.
"""
