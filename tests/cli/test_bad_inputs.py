"""Bad inputs of every kind: one clear line, exit code 2, nothing written and nothing spent.

All are tried in one process that forks for each, with everything loaded: a start takes seconds.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

_REPO = pathlib.Path(__file__).resolve().parents[2]

_TRAIN = '--dataset=digits --target_epsilon=3 --train_steps=5 --noevaluate'.split()
_FOLDER = [*_TRAIN, '--dataset=folder:photos']
_PLAN = '--target_epsilon=3 --train_steps=5 --dataset_size=1000'.split()

# (what, command, arguments, what the line says). The folder has: photos/ with two classes of
# pictures, a file `file`, folders `locked` and `photos [2024]`, flagfiles of many editors.
_CASES = [
    ('brackets in the run path', 'train', [*_TRAIN, '--run_dir=a [1]'], 'for a pattern'),
    ('a backslash in the run path', 'train', [*_TRAIN, '--run_dir=a\\b'], 'for a pattern'),
    ('a star above the run path', 'train', [*_TRAIN, '--run_dir=*/run'], 'for a pattern'),
    ('a run that is a file', 'train', [*_TRAIN, '--run_dir=file'], 'must be a folder'),
    ('a run below a file', 'train', [*_TRAIN, '--run_dir=file/run'], 'is not a folder'),
    ('a run in a device', 'train', [*_TRAIN, '--run_dir=/dev/null/run'], 'is not a folder'),
    ('a line break in a path', 'train', [*_TRAIN, '--run_dir=a\nb'], 'one line of text'),
    ('a blank behind a path', 'train', [*_TRAIN, '--dataset=folder:photos '], 'one line of text'),
    ('a path that is no UTF-8', 'train', [*_TRAIN, '--run_dir=\udce9'], 'one line of text'),
    ('a run among the images', 'train', [*_FOLDER, '--run_dir=photos/run'], 'outside the folder'),
    ('secrets among the images', 'train', [*_FOLDER, '--state_dir=photos/s'], 'outside the folder'),
    ('runs among the images', 'train', [*_TRAIN, '--dataset=folder:with_run'], 'Do not delete it'),
    ('secrets in the run', 'train', [*_TRAIN, '--run_dir=r', '--state_dir=r/s'], 'outside the run'),
    ('secrets below a file', 'train', [*_TRAIN, '--state_dir=file/s'], 'cannot be written'),
    ('a folder that is not there', 'train', [*_TRAIN, '--dataset=folder:no'], 'no folder'),
    ('a data set that is a file', 'train', [*_TRAIN, '--dataset=folder:file'], 'no folder'),
    ('a data set without a name', 'train', [*_TRAIN, '--dataset=folder:'], 'no folder'),
    ('nothing to resume', 'train', [*_TRAIN, '--run_dir=no', '--resume'], 'Nothing to resume'),
    ('nothing trained to resume', 'train', [*_TRAIN, '--run_dir=photos', '--resume'], 'Nothing to'),
    ('a run folder that is used', 'train', [*_TRAIN, '--run_dir=photos'], 'not empty'),
    ('classes in UTF-16 without a mark', 'train', [*_TRAIN, '--classes=utf16le.txt'], 'as UTF-8'),
    ('classes in latin-1', 'train', [*_TRAIN, '--classes=latin1.txt'], 'as UTF-8'),
    ('a flagfile that is not there', 'train', ['--flagfile=no.flags'], 'no flagfile'),
    ('a flagfile that is a folder', 'train', ['--flagfile=./photos'], 'no flagfile'),
    ('a flagfile in latin-1', 'train', ['--flagfile=latin1.txt'], 'line 2: save it as UTF-8'),
    ('a flagfile in UTF-16, no mark', 'train', ['--flagfile=utf16le.txt'], 'save it as UTF-8'),
    ('a flagfile that is a picture', 'train', ['--flagfile=photos/a/0.png'], 'save it as UTF-8'),
    ('a flagfile of itself', 'train', ['--flagfile=itself.flags'], 'names itself'),
    ('a flagfile with a BOM', 'train', ['--flagfile=bom.flags'], 'train_steps must be at least'),
    ('a flagfile in UTF-16', 'train', ['--flagfile=utf16.flags'], 'train_steps must be at least'),
    ('a flagfile of a flagfile', 'train', ['--flagfile', 'outer.flags'], 'must be at least'),
    ('a word that is no flag', 'train', [*_TRAIN, 'photos/a/0.png', 'b'], 'Received'),
    ('an unknown flag', 'train', [*_TRAIN, '--epsilon=3'], 'epsilon'),
    ('a flag in latin-1', 'train', [*_TRAIN, '--\udcfc=3'], 'Unknown'),
    ('a number that is none', 'train', [*_TRAIN, '--train_steps=many'], 'train_steps'),
    ('no budget', 'train', ['--dataset=digits'], 'target_epsilon'),
    ('a plan without a size', 'plan', _PLAN[:2], 'dataset_size'),
    ('a plan in no folder', 'plan', [*_PLAN, '--plot=no/plan.png'], 'no folder'),
    ('a plan that is no picture', 'plan', [*_PLAN, '--plot=plan.txt'], 'ends in one of'),
    ('no ledger', 'plan', ['--ledger=no.jsonl'], 'missing'),
    ('a ledger that is none', 'plan', ['--ledger=file'], 'altered|no plan'),
    ('a ledger that is a folder', 'plan', ['--ledger=photos'], 'ledger.jsonl is missing'),
    ('a ledger in latin-1', 'plan', ['--ledger=latin1.txt'], 'altered'),
    ('an evaluation of nothing', 'evaluate', [], '--run_dir'),
    ('an evaluation of no run', 'evaluate', ['--run_dir=photos'], 'not a run folder'),
    ('settings of a run in latin-1', 'evaluate', ['--run_dir=latin1_run'], 'as UTF-8'),
    ('something to remove', 'state', ['--state_dir=photos', '--remove=a'], 'nothing to remove'),
    ('an audit of nothing', 'audit', ['--runs=1'], 'runs must be'),
    ('an audit of too much', 'audit', ['--runs=100000000000000'], 'runs must be'),
    ('an audit without noise', 'audit', ['--noise_multiplier=1e-300'], 'noise_multiplier must be'),
    ('steps without end', 'train', [*_TRAIN, '--train_steps=' + '9' * 30], 'at most 2147483647'),
    ('more steps than text', 'plan', [*_PLAN, '--train_steps=' + '9' * 400], 'at most 2147483647'),
    ('a huge part', 'train', [*_TRAIN, '--microbatch_size=' + '9' * 22], 'at most 2147483647'),
    ('a wide network', 'train', [*_TRAIN, '--generator_width=1000000000'], 'at most 4096'),
    ('large images', 'train', [*_FOLDER, '--image_size=100000000'], 'at most 1024'),
    ('images that nothing doubles to', 'plan', [*_FOLDER, '--image_size=25'], 'nearest.* is 24'),
    ('an epsilon that is none', 'plan', ['--dataset_size=900', '--target_epsilon=1e20'], 'proven'),
    ('no person', 'plan', [*_PLAN, '--images_per_person=3', '--dataset_persons=0'], 'at least 1'),
    ('a user who is not there', 'check', ['~nobody_here/x'], 'no folder'),
    ('a user without a flagfile', 'plan', ['--flagfile=~nobody_here/x.flags'], 'no flagfile'),
    ('a long name', 'plan', ['--flagfile=' + 300 * 'n'], 'no flagfile'),
    ('few bits', 'check', ['photos', '--bits=3'], 'bits must be at least 8'),
    ('minus five minutes', 'check', ['photos', '--minutes=-5'], 'minutes must be at least 1'),
    ('a pattern that is none', 'check', ['photos', '--person=name:['], '--person'),
    ('seeds without end', 'results', ['--dry_run', '--seeds=' + '9' * 5000], 'at most 9 digits'),
    ('a run of nobody', 'report', ['~nobody_here/x'], 'no folder'),
    ('a benchmark of nothing', 'bench', ['--config=none'], 'config'),
]

_SERVER = """
import importlib, json, os, sys
cases, out = json.load(sys.stdin), {}
from tf_efsgd.run import runner, evaluate
from tf_efsgd import budget
for what, command, arguments in cases:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1); os.dup2(write, 2); os.close(read)
        sys.argv = ['tf-efsgd', command, *map(os.fsdecode, map(os.fsencode, arguments))]
        from tf_efsgd.cli import main
        try:
            main.main()
            code = 0
        except SystemExit as exit:
            code = exit.code
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 99
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code or 0)
    os.close(write)
    said = b''
    while part := os.read(read, 65536):
        said += part
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out[what] = [code, said.decode()]
sys.stdout.write(json.dumps(out))
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """The folder that everything is tried in."""
    folder = tmp_path_factory.mktemp('inputs')
    _write_pictures(folder / 'photos')
    _write_pictures(folder / 'with_run')
    run = folder / 'with_run' / 'runs' / 'first'
    run.mkdir(parents=True)
    (run / 'ledger.jsonl').write_text('')
    (folder / 'file').write_text('text\n')
    text = '# ε\n--dataset=digits\n--target_epsilon=3\n--train_steps=0\n'
    (folder / 'bom.flags').write_text(text, encoding='utf-8-sig')
    (folder / 'utf16.flags').write_text(text, encoding='utf-16')
    (folder / 'outer.flags').write_text('--flagfile=bom.flags\n')
    (folder / 'itself.flags').write_text('--flagfile=itself.flags\n')
    (folder / 'utf16le.txt').write_text(text, encoding='utf-16-le')
    (folder / 'latin1.txt').write_text('--dataset=digits\n--data_dir=Köln\n', encoding='latin-1')
    (folder / 'latin1_run').mkdir()
    (folder / 'latin1_run' / 'config.flags').write_bytes((folder / 'latin1.txt').read_bytes())
    return folder


def _write_pictures(folder):
    # 1x1 gray; enough to be a PNG.
    png = bytes.fromhex(
        '89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c'
        '63f80f00010101001bb6ee560000000049454e44ae426082'
    )
    for name in ('a', 'b'):
        (folder / name).mkdir(parents=True)
        (folder / name / '0.png').write_bytes(png)


def _everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.fixture(scope='module')
def results(place, tmp_path_factory):
    """What each command said, by what was wrong; also what there was before and after."""
    before = _everything(place)
    done = subprocess.run(
        [sys.executable, '-c', _SERVER],
        cwd=place,
        input=json.dumps([case[:3] for case in _CASES]).encode(),
        env={
            **os.environ,
            'PYTHONPATH': str(_REPO),
            'XDG_STATE_HOME': str(tmp_path_factory.mktemp('state')),
        },
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return {**json.loads(done.stdout), 'files': (before, _everything(place))}


@pytest.mark.parametrize(
    ('what', 'said'), [(what, said) for what, _, _, said in _CASES], ids=lambda text: text[:40]
)
def test_a_bad_input_is_one_line(what, said, results):
    code, written = results[what]
    assert code == 2, written
    *before, line = written.splitlines()
    assert all(text.startswith('Training on ') for text in before), before
    assert line.startswith('tf_efsgd: ') and re.search(said, line), line
    assert '--resume' not in line or 'resume' in what or 'used' in what, line


def test_nothing_was_written(results):
    before, after = results['files']
    assert after == before
