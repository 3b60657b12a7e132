"""Memory is that of a step's batch, in a process of its own."""

import dataclasses

from helpers.tiny_benchmark import NETWORKS, RECORDS, VARIANTS

from tf_efsgd.benchmark import memory


def test_memory_is_of_another_process():
    found = memory._process_memory(NETWORKS, VARIANTS['plain'])
    assert 1e6 < found < 1e9
    assert found % 1024 == 0


def test_memory_is_that_of_the_batch(monkeypatch):
    monkeypatch.setattr(
        memory, '_process_memory', lambda _, variant: 7e6 + 3e3 * variant.batch_size
    )
    assert memory.measure_memory(NETWORKS, VARIANTS['plain']) == 3e3 * (2 * RECORDS - 2)


def test_a_process_that_dies_has_no_figure():
    broken = dataclasses.replace(VARIANTS['plain'], batch_size=-2)
    assert memory.measure_memory(NETWORKS, broken) is None
