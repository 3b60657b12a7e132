"""An exported generator that was never trained, in the place where a run has its own."""

from tf_efsgd.models.generator import build_generator
from tf_efsgd.run import exports

NAMES = ('cat', 'dog/puppy', 'röd fisk')
STATEMENT = {
    'unit_of_privacy': 'one image with its label',
    'private': True,
    'dataset': 'folder:pets',
    'dataset_size': 300,
    'epsilon': 3.1,
    'delta': 1e-5,
    'delta_times_units': 0.003,
    'target_epsilon': 3.3,
    'steps': 8,
    'applied_steps': 8,
    'proven': ['a'],
    'tested_not_proven': ['b'],
    'not_covered': ['c'],
    'released_class_counts': [60.0, -3.0, 20.0],
}


def make(run_dir, names=NAMES, **changes):
    """Exports it; returns the folder of the export."""
    run_dir.mkdir(parents=True, exist_ok=True)
    generator = build_generator((8, 8, 1), len(names), latent_dim=4, width=8)
    statement = {**STATEMENT, **exports.of_generator(generator, names), **changes}
    return exports.export(run_dir, generator, statement)[0]
