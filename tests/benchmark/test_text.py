"""What is shown of results: tables, and what scaling costs."""

import pytest

from tf_efsgd.benchmark import measure, text, variants


def test_scaling_is_by_record():
    chosen = variants.scaling_variants([64, 256], 256)
    assert [(v.records, v.microbatch_size) for v in chosen] == [(32, 256), (128, 256)]
    seconds, used = {'batch_64': [3.2], 'batch_256': [6.4]}, {'batch_64': 4e6, 'batch_256': 6e6}
    small, large = measure.results_of(chosen, seconds, used)
    assert (small.ratio.median, large.ratio.median) == pytest.approx((1.0, 0.5))
    assert large.memory_ratio == 1.5
    first, *_, last = text.format_table([small, large], scaling=True).splitlines()
    assert '256 records at a time' in text.format_table([small, large], scaling=True)
    row = dict(zip(first.replace('× ', '×').split(), last.replace('error ', '').split()))
    assert row['µs/record'] == '50000' and row['×time'] == '0.50' and row['×MB'] == '1.50'


def test_scaling_tells_what_is_fixed_from_what_a_record_costs():
    growing = variants.scaling_variants(variants.SCALING_BATCH_SIZES, 256)

    def described(seconds_of, count=7):
        seconds = {v.name: [seconds_of(v.records)] * 3 for v in growing}
        results = measure.results_of(growing, seconds, dict.fromkeys(seconds))
        return text.describe_scaling(results[:count])

    def straight(records):
        return 0.0123 + 104e-6 * records

    line = '12.3 ms for every step and 104 µs for every record'
    assert described(straight) == f'{line}; with 256 records or more, 104 to 104 µs for one more'
    assert described(straight, count=3) == line  # Up to 128 records.
    bent = described(lambda records: straight(records) + 26e-6 * max(0, records - 1024))
    assert bent.endswith('with 256 records or more, 104 to 130 µs for one more')
