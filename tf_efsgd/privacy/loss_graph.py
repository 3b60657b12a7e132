"""What the graph of a private loss must not hold: an op that draws, writes or calls Python."""

from __future__ import annotations

import re

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

# Ops that TensorFlow calls stateful although they only read or pass on.
_HARMLESS = re.compile(
    r'VarHandleOp|ReadVariableOp|ResourceGather(Nd)?|NoOp|'
    r'(Stateful)?PartitionedCall|(Stateless)?(If|While|Case)|TensorArray\w*|'
    r'(Mutable)?HashTable(V2|OfTensorsV2)?|LookupTable(Find|Size)(V2)?|CudnnRNN(Backprop)?(V2|V3)?'
)
_RANDOM = re.compile(r'Random|Rng|Multinomial|Truncated|Sampler|Stateful(Uniform|Standard)|Shuffle')
# Ops that fail for some values of a record. Integer division and looking up by index can fail, too,
# but are part of every graph, for shapes and labels.
_FAILS = re.compile(
    r'Assert|CheckNumerics(V2)?|(Batch)?(Cholesky|Matrix(Inverse|Solve|SolveLs|TriangularSolve))|'
    r'(Log)?MatrixDeterminant|MatrixLogarithm|MatrixSquareRoot|(Batch)?SelfAdjointEig(V2)?|Eig|Lu|'
    r'BandedTriangularSolve|CropAndResize|ScaleAndTranslate|HistogramFixedWidth'
)
_WRITES = re.compile(r'Assign|ResourceApply|ResourceScatter|ResourceSparseApply|Insert|Import')


def why_refused(graph: tf.Graph) -> str | None:
    """Finds what must not be in a graph, or in a function that it calls.

    Args:
      graph: of the loss and its gradient.

    Returns:
      What is wrong, as the rest of a sentence; None if nothing is.
    """
    definition = graph.as_graph_def()
    functions = [function.node_def for function in definition.library.function]
    for node in (node for nodes in [definition.node, *functions] for node in nodes):
        reason = _why_node(node)
        if reason:
            return reason
    return None


def _why_node(node) -> str | None:
    definition = op_def_registry.get(node.op)
    if definition is None:  # A function: its nodes are looked at themselves.
        return None
    if _RANDOM.search(node.op):
        return (
            f'it draws random numbers of its own ({node.op} in {node.name!r}), which depend on a '
            "record's place in the batch and not on the record; leave that layer out"
        )
    if 'PyFunc' in node.op:
        return f'it calls Python ({node.op} in {node.name!r}), which may do anything'
    if _FAILS.fullmatch(node.op):
        return (
            f'it may stop the run because of one record ({node.op} in {node.name!r}), and that '
            'would show that the record is there'
        )
    if not definition.is_stateful or _HARMLESS.fullmatch(node.op):
        return None
    if _WRITES.search(node.op):
        return (
            f'it writes a variable ({node.op} in {node.name!r}), which keeps something of the '
            'records that no clipping bounds'
        )
    return f'it does something besides computing a number ({node.op} in {node.name!r})'
