"""Names of classes as names of folders."""

import pytest

from tf_efsgd.export import names


@pytest.mark.parametrize(
    ('class_names', 'folders'),
    [
        (['cat', 'röd fisk', '猫'], ['cat', 'röd fisk', '猫']),
        (['a/b', 'a\\b', '../x', '.hidden', '-rf'], ['a_b', 'a_b_1', '_x', 'hidden', 'class_4']),
        (['Cat', 'cat', 'cat_1'], ['Cat', 'cat_1', 'cat_1_2']),
        (['', '...', '///', '\x00', '?'], [f'class_{i}' for i in range(5)]),
        (['CON', 'nul.txt', 'com1', 'console'], ['class_0', 'class_1', 'class_2', 'console']),
        # What readers of folders of images take for a split.
        (['train', 'test strip', 'my-val', 'value'], ['class_0', 'class_1', 'class_2', 'value']),
        (['labels.csv', 'README.md'], ['labels.csv_0', 'README.md_1']),
        (['end. ', ' x', 'a\nb'], ['end', 'x', 'a_b']),
        (['caf\udce9'], ['caf_']),
    ],
)
def test_a_folder_is_named_by_its_class_where_that_is_safe(class_names, folders):
    assert names.folder_names(class_names) == folders


def test_long_names_are_cut_between_letters_and_stay_different():
    found = names.folder_names(['ü' * 300, 'ü' * 299])
    assert found == ['ü' * 40, 'ü' * 40 + '_1']


@pytest.mark.parametrize(
    ('text', 'name'),
    [
        ('synthetic_folder:My photos', 'synthetic_folder_my_photos'),
        ('9 x', 'data_9_x'),
        ('', 'data'),
    ],
)
def test_the_name_of_a_data_set_is_one_of_tfds(text, name):
    assert names.dataset_name(text) == name
