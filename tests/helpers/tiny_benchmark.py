"""Networks so small that every step of the benchmark takes no time, and the steps on them."""

from tf_efsgd.benchmark import variants

NETWORKS = variants.Networks((8, 8, 1), 3, width=4, generator_width=8, latent_dim=4)
RECORDS = 6
VARIANTS = {variant.name: variant for variant in variants.step_variants(2 * RECORDS, 8)}
