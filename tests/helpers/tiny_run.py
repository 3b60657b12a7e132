"""A run so small that a test can start several: its settings, and how to look at its folder."""

import json
import shutil

import pytest

from tf_efsgd import config
from tf_efsgd.run import private_steps, runner

TARGET = 1.0
SETTINGS = {
    'dataset': 'digits',
    # About a tenth of the records: calibration is quick there.
    'expected_batch_size': 160,
    'target_epsilon': TARGET,
    'train_steps': 8,
    'discriminator_steps': 2,
    'noadaptive_discriminator_steps': None,
    'latent_dim': 4,
    'generator_width': 8,
    'discriminator_width': 8,
    'log_steps': 2,
    'checkpoint_steps': 3,
    'sample_steps': 5,
    'evaluation_images': 100,
}


def flags(folder, *more, **changes):
    """Returns the settings of a tiny run, as lines of a flagfile."""
    settings = {**SETTINGS, 'run_dir': folder, **changes}
    lines = [f'--{k}' if v is None else f'--{k}={v}' for k, v in settings.items()]
    return [*lines, *more]


def run(folder, *more, sources=None, **changes):
    """Runs it, in this process; `sources` are those of `runner.run`."""
    lines = flags(folder, '--strategy=one_device', *more, **changes)
    assert runner.run(config.from_flagfile('\n'.join(lines)), sources) == str(folder)


def run_until_steps(folder, *more, **changes):
    """Runs it until its private steps would begin, which a power cut prevents."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(private_steps, 'train', cut)
        run(folder, *more, **changes)


def copy(base, to):
    """Copies base/run and base/state, as if there were only this run; returns its folder."""
    for name in ('run', 'state'):
        shutil.copytree(base / name, to / name)
    return to / 'run'


def reserved(folder):
    """Reads the counts of the ledger, without its class."""
    plan, *entries = (json.loads(line) for line in (folder / 'ledger.jsonl').open())
    assert plan['kind'] == 'plan'
    return [entry['count'] for entry in entries if entry['kind'] == 'steps']


def kinds(folder):
    """Reads what kinds of entries the ledger has, in order."""
    return [json.loads(line)['kind'] for line in (folder / 'ledger.jsonl').open()]


class PowerCut(Exception):
    """Stands for a power cut."""


def cut(*_, **__):
    """Takes the place of a function that a power cut does not let happen."""
    raise PowerCut


def statement(folder):
    """Reads the exported privacy statement."""
    return json.loads((folder / 'export/1/assets.extra/privacy_statement.json').read_text())
