"""The callbacks: what is reserved before it runs, and what is shown."""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers import event_files
from tensorboard.plugins.custom_scalar import layout_pb2

from tf_efsgd.training import callbacks as monitoring
from tf_efsgd.training import samples


def _run(callbacks, logs):
    """Calls callbacks as fit does, one step for each entry of logs."""
    for callback in callbacks:
        callback.on_train_begin()
    for batch, log in enumerate(logs):
        for callback in callbacks:
            callback.on_train_batch_begin(batch)
        for callback in callbacks:
            callback.on_train_batch_end(batch, log)
    for callback in callbacks:
        callback.on_train_end()


@pytest.mark.parametrize(
    ('first', 'last', 'saved'), [(0, 7, [3, 6, 7]), (4, 7, [6, 7]), (0, 6, [3, 6]), (6, 7, [7])]
)
def test_steps_count_over_resumes_and_the_last_is_always_due(first, last, saved):
    done = []
    _run([monitoring.Checkpoint(done.append, first, last, every=3)], [{}] * (last - first))
    assert done == saved


def test_scalars_of_two_runs_are_read_back_as_one(tmp_path):
    for first, last in ((0, 4), (4, 6)):
        writer = tf.summary.create_file_writer(str(tmp_path), filename_suffix=f'.{first}')
        scalars = monitoring.TensorBoardScalars(
            writer, first, last, every=2, epsilon=lambda steps: 0.3 * steps
        )
        logs = [{'loss': 10.0 * step, 'count': tf.constant(step)} for step in range(first, last)]
        _run([scalars], logs)
        writer.close()
    assert len(list(tmp_path.iterdir())) == 2
    entries = monitoring.read_scalars(str(tmp_path))
    wanted = [(2, 10.0, 1.0, 0.6), (4, 30.0, 3.0, 1.2), (6, 50.0, 5.0, 1.8)]
    names = ('step', 'dp/loss', 'dp/count', 'dp/epsilon')
    assert [e.keys() for e in entries] == [set(names)] * 3
    found = [[e[name] for name in names] for e in entries]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_all_entries_of_a_long_run_are_read_back(tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path))
    _run([monitoring.TensorBoardScalars(writer, 0, 1500, every=1)], [{'loss': 1.0}] * 1500)
    writer.close()
    entries = monitoring.read_scalars(str(tmp_path), is_private=False)
    assert [entry['step'] for entry in entries] == list(range(1, 1501))
    assert set(entries[0]) == {'step', 'nonprivate/loss'}, 'no epsilon when nothing is private'


def test_what_is_planted_in_the_logs_is_not_read_back(tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path))
    _run([monitoring.TensorBoardScalars(writer, 0, 2, every=2, epsilon=float)], [{}] * 2)
    with writer.as_default(step=2):
        for tag in ('nonprivate/loss', 'loss', 'dpx/loss', 'x/dp/loss'):
            tf.summary.scalar(tag, 0.3)
    writer.close()
    assert monitoring.read_scalars(str(tmp_path)) == [{'step': 2, 'dp/epsilon': 2.0}]
    entries = monitoring.read_scalars(str(tmp_path), is_private=False)
    assert [entry.keys() for entry in entries] == [{'step', 'nonprivate/loss'}]


@pytest.mark.parametrize(
    ('channels', 'columns', 'rows'), [(1, 2, 2), (3, 2, 2), (1, 3, 1), (1, 1, 3)]
)
def test_a_grid_holds_one_image_per_cell(channels, columns, rows):
    images = np.arange(rows * columns * 4 * channels).reshape(-1, 2, 2, channels).astype(np.uint8)
    grid = samples.image_grid(images, columns)
    # 2 pixels are enlarged to 64, with a white margin of 2 on each side.
    cell, factor = 68, 32
    assert grid.shape == (rows * cell, columns * cell, channels)
    assert grid.dtype == np.uint8
    for i, image in enumerate(images):
        top, left = i // columns * cell, i % columns * cell
        shown = grid[top : top + cell, left : left + cell]
        np.testing.assert_array_equal(shown[2:-2:factor, 2:-2:factor], image)
        np.testing.assert_array_equal(shown[33, 33], image[0, 0])
        np.testing.assert_array_equal(shown[34, 33], image[1, 0])
        frame = np.ones([cell, cell], bool)
        frame[2:-2, 2:-2] = False
        assert (shown[frame] == 255).all()


def test_large_images_are_not_enlarged():
    assert samples.image_grid(np.zeros([2, 64, 64, 3], np.uint8), 2).shape == (68, 136, 3)


@pytest.mark.parametrize(('num_classes', 'columns'), [(3, 3), (1, 1), (40, 16)])
def test_samples_have_one_class_per_column(num_classes, columns, tmp_path):
    asked = []

    def generate(labels):
        asked.append(labels)
        # The label as shade.
        return np.tile(labels.astype(np.uint8)[:, None, None, None], [1, 56, 56, 1])

    logs, folder = tmp_path / 'logs', tmp_path / 'samples'
    folder.mkdir()
    writer = tf.summary.create_file_writer(str(logs))
    _run(
        [samples.SampleGrid(writer, str(folder), generate, num_classes, 0, 5, 2, rows=4)],
        [{}] * 5,
    )
    names = sorted(path.name for path in folder.iterdir())
    assert names == ['step_000002.png', 'step_000004.png', 'step_000005.png']
    assert (asked[0].dtype, len(asked[0])) == (np.int32, 4 * columns)
    grid = tf.io.decode_png(tf.io.read_file(str(folder / names[0]))).numpy()
    assert grid.shape == (4 * 60, columns * 60, 1)
    np.testing.assert_array_equal(grid[30::60, 30::60, 0], np.tile(np.arange(columns), [4, 1]))
    # Pictures are no scalars.
    assert monitoring.read_scalars(str(logs)) == []


@pytest.mark.parametrize(
    ('num_classes', 'start'),
    [
        (1, 'One class per column: '),
        (16, 'One class per column: '),
        (17, 'One class per column, the first 16 of 17: '),
        (40, 'One class per column, the first 16 of 40: '),
    ],
)
def test_the_caption_names_the_columns_of_the_grid(num_classes, start, tmp_path):
    asked = []

    def generate(labels):
        asked.extend(labels)
        return np.zeros([len(labels), 8, 8, 1], np.uint8)

    writer = tf.summary.create_file_writer(str(tmp_path))
    samples.SampleGrid(writer, str(tmp_path), generate, num_classes, 0, 1, 1).on_due({})
    names = tuple(f'class {i}' for i in range(num_classes))
    shown = ', '.join(names[label] for label in sorted(set(asked)))
    assert samples.SampleGrid.caption(names) == start + shown


@pytest.mark.parametrize(
    ('epsilon', 'wanted'),
    [
        (lambda steps: 0.12341 * steps, 'ε≤0.3703 of 0.3703'),  # 0.37023, rounded up.
        (lambda steps: 1.1, 'ε≤1.1 of 1.1'),
        (lambda steps: math.inf, 'ε≤none of none'),
        (None, 'NOT PRIVATE'),
    ],
)
def test_the_progress_bar_shows_epsilon_or_that_there_is_none(epsilon, wanted, capsys):
    _run([monitoring.ProgressBar(0, 3, 1, epsilon)], [{}] * 3)
    shown = capsys.readouterr().err
    assert wanted in shown and '3/3' in shown


def test_the_progress_bar_never_shows_less_than_its_steps_have_cost():
    bar = monitoring.ProgressBar(1, 8, 3, lambda steps: float(steps))
    bar.on_train_begin()
    shown = [bar._bar.postfix]
    for batch in range(7):
        bar.on_train_batch_end(batch)
        shown.append(bar._bar.postfix)
    bar.on_train_end()
    # Steps are paid for three at a time, before they run.
    assert shown == [f'ε≤{paid} of 8' for paid in (3, 3, 6, 6, 6, 8, 8, 8)]


@pytest.mark.parametrize('is_private', [True, False])
def test_tensorboard_tells_the_story_at_a_glance(is_private, tmp_path):
    start = 'dp' if is_private else 'nonprivate'
    writer = tf.summary.create_file_writer(str(tmp_path))
    monitoring.write_overview(writer, is_private, {'seed': 3, 'dataset': 'digits'})
    monitoring.write_scalar(writer, is_private, 'distance_to_release', 30, 0.25)
    writer.close()
    events = event_files.read(tmp_path)
    (event,) = events.Tensors('custom_scalars__config__')
    layout = layout_pb2.Layout.FromString(tf.make_ndarray(event.tensor_proto).item())
    shown = [
        tag
        for category in layout.category
        for chart in category.chart
        for tag in chart.multiline.tag
    ]
    wanted = ['epsilon', 'fake_loss', 'distance_to_release', 'buffer_norm']
    assert {f'^{start}/{name}$' for name in wanted} <= set(shown)
    assert all(tag.startswith(f'^{start}/') for tag in shown)
    assert events.PluginTagToContent('hparams')['_hparams_/session_start_info']
    # What draws the curves of the report leaves it out.
    entries = monitoring.read_scalars(str(tmp_path), is_private)
    assert entries == [{'step': 30, f'{start}/distance_to_release': 0.25}]


def test_more_released_scalars_are_read_when_an_entry_is_due(tmp_path):
    calls = []

    def more():
        calls.append(True)
        return {'buffer_norm': 0.5}

    writer = tf.summary.create_file_writer(str(tmp_path))
    _run([monitoring.TensorBoardScalars(writer, 0, 5, 2, more=more)], [{}] * 5)
    writer.close()
    assert len(calls) == 3
    entries = monitoring.read_scalars(str(tmp_path), is_private=False)
    assert [entry['nonprivate/buffer_norm'] for entry in entries] == [0.5] * 3
