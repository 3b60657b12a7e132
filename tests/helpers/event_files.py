"""Reads what a run has written for TensorBoard."""

from tensorboard.backend.event_processing import event_accumulator

# Tags of pages that show what others have logged.
OVERVIEW = {'custom_scalars__config__', '_hparams_/session_start_info'}


def read(folder):
    """Returns all events of a folder, of which none may be a graph."""
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={'tensors': 0})
    events.Reload()
    tags = events.Tags()
    assert not tags['graph'] and not tags['meta_graph'], 'a graph may hold constants'
    return events


def tags(folder):
    """Returns the tags of all events of a folder."""
    found = read(folder).Tags()
    return set().union(*(tags for tags in found.values() if tags))
