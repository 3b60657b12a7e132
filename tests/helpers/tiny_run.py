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
    """The settings of a tiny run, as lines of a flagfile."""
    settings = {**SETTINGS, 'run_dir': folder, **changes}
    lines = [f'--{k}' if v is None else f'--{k}={v}' for k, v in settings.items()]
    return [*lines, *more]


def run(folder, *more, **changes):
    """Runs it, in this process."""
    lines = flags(folder, '--strategy=one_device', *more, **changes)
    assert runner.run(config.from_flagfile('\n'.join(lines))) == str(folder)


def run_until_steps(folder, *more, **changes):
    """Runs it until its private steps would begin, which a power cut prevents."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(private_steps, 'train', cut)
        run(folder, *more, **changes)


def copy(base, to):
    """A copy of base/run and of base/state, as if it were the only one; returns its folder."""
    for name in ('run', 'state'):
        shutil.copytree(base / name, to / name)
    return to / 'run'


def reserved(folder):
    """The counts of the ledger, read without its class."""
    plan, *entries = (json.loads(line) for line in (folder / 'ledger.jsonl').open())
    assert plan['kind'] == 'plan'
    return [entry['count'] for entry in entries if entry['kind'] == 'steps']


def kinds(folder):
    """What the entries of the ledger are, in order."""
    return [json.loads(line)['kind'] for line in (folder / 'ledger.jsonl').open()]


class PowerCut(Exception):
    """In place of one."""


def cut(*_, **__):
    """In place of a function that a power cut does not let happen."""
    raise PowerCut


def statement(folder):
    """The exported privacy statement."""
    return json.loads((folder / 'export/1/assets.extra/privacy_statement.json').read_text())
