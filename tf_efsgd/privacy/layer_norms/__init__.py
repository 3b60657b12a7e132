"""Per-example gradient norms, and weighted gradient sums, from one backward pass over a batch.

The gradient of one example's loss with respect to a kernel is a sum over T positions t of products
of the input a_t and the gradient with respect to the output, g_t: G = sum_t a_t g_t^T. So its norm
needs no backward pass per example, nor, where T is small, G itself (Goodfellow 2015, arXiv
1510.01799; Rochette et al. 2019, arXiv 1912.06015):

    |G|^2 = sum_{t,s} <a_t, a_s> <g_t, g_s>        the Gram form, about T^2 (m + p) products
    |G|^2 = |A^T G'|^2                              the direct form, T m p products

And sum_i w_i G_i comes from the same a and g, for weights w that are known only afterwards
(book-keeping, Bu et al. 2022, arXiv 2210.00038).

`rule` has the form of a rule, `registry` the table of all rules; each family of layers has a file
of its own. `one_pass` records the calls of a model and makes one backward pass over them.

Formal guarantees:
  - A rule's squared norm is that of the whole gradient with respect to all trainable variables of
    its layer; for a layer that is called several times in a pass it is that of the SUM of its
    gradients (`join`).
  - An example's numbers depend on that example's rows alone; the other rows can change at most
    their rounding. A call of a layer must have as many rows as there are losses: a call is refused
    if its batch axis holds views, patches or time steps, or nothing of the examples.
  - What a rule does not cover is refused with `UnsupportedLayerError`, never left out.
"""

from tf_efsgd.privacy.layer_norms.one_pass import (
    Models,
    activations,
    check_layers,
    clipped_sum,
    gradients_by_layer,
    reason_of,
    switch_off_tensor_float_32,
)
from tf_efsgd.privacy.layer_norms.patches import Patches
from tf_efsgd.privacy.layer_norms.registry import make_layer_registry
from tf_efsgd.privacy.layer_norms.rule import PerExample, Products, UnsupportedLayerError

__all__ = [
    'Models',
    'Patches',
    'PerExample',
    'Products',
    'UnsupportedLayerError',
    'activations',
    'check_layers',
    'clipped_sum',
    'gradients_by_layer',
    'make_layer_registry',
    'reason_of',
    'switch_off_tensor_float_32',
]
