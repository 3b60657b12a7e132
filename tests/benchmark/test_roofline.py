"""The work of a step, counted by hand."""

from tf_efsgd.benchmark import roofline, variants


def test_work_is_counted_by_hand():
    # A Dense 3 -> 5 at 2 positions, then a 2x2 convolution of all to 7 numbers.
    layers, kinds = [(2, 3, 5, 6), (1, 20, 7, 10)], variants.step_variants(8, 8)
    plain, private, feedback = (roofline.count_work(layers, v) for v in kinds[:3])
    # 60 operations twice, 280 three times; what goes in and out, and five times the activation.
    assert plain == roofline.Work(
        8 * (2 * 60 + 3 * 280), 8 * 4 * (3 * 16 + 5 * 10 + 3 * 17 + 5 * 7), 0
    )
    # The first layer's norm is cheaper direct, the second's as a Gram form; it alone has patches.
    assert private.operations - plain.operations == 8 * (60 + 2 * 27)
    assert private.bytes - plain.bytes == 8 * 4 * (2 * 10 + 3 * 20 + 2 * 7)
    assert private.draws == 4 * 5 + 21 * 7 == feedback.draws / 2
    assert feedback.operations - private.operations == 4 * (60 + 280)
    assert feedback.bytes - private.bytes == 4 * 4 * (6 + 3 * 10 + 10 + 3 * 7)


def test_the_least_time_is_of_what_takes_longest_and_of_the_draws():
    machine = roofline.Work(100.0, 10.0, 4.0)
    assert roofline.Work(300.0, 20.0, 2.0).least_seconds(machine) == 3.5
    assert roofline.Work(300.0, 40.0, 0.0).least_seconds(machine) == 4.0


def test_layers_are_those_of_the_discriminator():
    layers = roofline.layers_of(variants.MODELS['mnist'])
    assert layers[:2] == [(49, 16, 32, 784), (16, 512, 64, 7 * 7 * 32)]
    assert sum((m + 1) * p for _, m, p, _ in layers) == 47_786
