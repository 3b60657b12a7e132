"""The records of a data set, and the Poisson sampler over them."""
