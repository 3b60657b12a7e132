"""Writes the datasheets of a synthetic data set: README.md with a header, and Croissant JSON-LD."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tf_efsgd import file_names, rounding

# What stands in the place of a licence until whoever publishes the data set has chosen one.
_NO_LICENCE = 'not chosen yet'

_HOW_TO_LOAD = {
    'png': """\
import datasets
dataset = datasets.load_dataset('imagefolder', data_dir='{folder}')['train']

import tensorflow as tf
dataset = tf.keras.utils.image_dataset_from_directory('{folder}', image_size=({height}, {width}))
""",
    'npz': """\
import numpy as np
data = np.load('{folder}/images.npz')
images, labels, class_names = data['images'], data['labels'], data['class_names']
""",
    'tfrecord': """\
import tensorflow as tf
features = {{
    'image/encoded': tf.io.FixedLenFeature([], tf.string),
    'image/class/label': tf.io.FixedLenFeature([], tf.int64),
}}
files = tf.io.gfile.glob('{folder}/images-*.tfrecord')
dataset = tf.data.TFRecordDataset(files).map(lambda x: tf.io.parse_single_example(x, features))
""",
    'tfds': """\
import tensorflow_datasets as tfds
dataset = tfds.load('{name}', data_dir='{folder}', split='train', as_supervised=True)
""",
}

_TO_FILL_IN = """\
## Before you publish it

No licence has been chosen, and the data set has no address on the Web: the program that made it
knows neither. Write yours here and into `croissant.json`, then make the checksums again.

- Licence: `license` in the header of this file, e.g. `license: cc-by-4.0` without `license_name`;
  in `croissant.json`, `"license": "https://spdx.org/licenses/CC-BY-4.0.html"`.
- Address: `url` in `croissant.json`, which names this file until then.
- Name: `creator` in `croissant.json`, which names the program until then.

```
find . -type f ! -name SHA256SUMS | cut -c3- | sort | tr '\\n' '\\0' |
  xargs -0 sha256sum > SHA256SUMS
```

On macOS without `sha256sum`, write `shasum -a 256` in its place.

"""

# The vocabulary of Croissant 1.0, as its specification gives it.
_CONTEXT = {
    '@language': 'en',
    '@vocab': 'https://schema.org/',
    'citeAs': 'cr:citeAs',
    'column': 'cr:column',
    'conformsTo': 'dct:conformsTo',
    'cr': 'http://mlcommons.org/croissant/',
    'rai': 'http://mlcommons.org/croissant/RAI/',
    'data': {'@id': 'cr:data', '@type': '@json'},
    'dataType': {'@id': 'cr:dataType', '@type': '@vocab'},
    'dct': 'http://purl.org/dc/terms/',
    'equivalentProperty': 'cr:equivalentProperty',
    'examples': {'@id': 'cr:examples', '@type': '@json'},
    'extract': 'cr:extract',
    'field': 'cr:field',
    'fileProperty': 'cr:fileProperty',
    'fileObject': 'cr:fileObject',
    'fileSet': 'cr:fileSet',
    'format': 'cr:format',
    'includes': 'cr:includes',
    'isLiveDataset': 'cr:isLiveDataset',
    'jsonPath': 'cr:jsonPath',
    'key': 'cr:key',
    'md5': 'cr:md5',
    'parentField': 'cr:parentField',
    'path': 'cr:path',
    'recordSet': 'cr:recordSet',
    'references': 'cr:references',
    'regex': 'cr:regex',
    'repeated': 'cr:repeated',
    'replace': 'cr:replace',
    'samplingRate': 'cr:samplingRate',
    'sc': 'https://schema.org/',
    'separator': 'cr:separator',
    'source': 'cr:source',
    'subField': 'cr:subField',
    'transform': 'cr:transform',
}


def guarantee(statement: Mapping[str, Any]) -> str:
    """Says in one sentence what is promised."""
    if not statement.get('private'):
        return (
            'NOT PRIVATE: no guarantee of differential privacy holds for these images; they may '
            'repeat images that the generator learned from.'
        )
    epsilon = statement.get('epsilon')
    shown = rounding.up(math.inf if epsilon is None else float(epsilon))
    unit = statement.get('unit_of_privacy', 'one image with its label')
    return (
        f'Differentially private: epsilon = {shown}, delta = {statement.get("delta")}, '
        f'for {unit}; any number of images drawn from the generator is covered.'
    )


def readme(about: Mapping[str, Any], statement: Mapping[str, Any]) -> str:
    """Writes the datasheet as Markdown, with the header that Hugging Face reads.

    Args:
      about: how the data set was generated, as in `generation.json`.
      statement: the privacy statement of the generator.

    Returns:
      The text of README.md.
    """
    height, width, channels = about['image_shape']
    load = _HOW_TO_LOAD[about['format']].format(
        folder='OUT', name=about['name'], height=height, width=width
    )
    rows = '\n'.join(
        f'| {label} | {_cell(name)} | {count:,} |'
        for label, (name, count) in enumerate(zip(about['class_names'], about['class_counts']))
    )
    public = statement.get('public_images')
    learned = f'\nThe generator also used {public}, which have no guarantee.\n' if public else ''
    program = (statement.get('software') or {}).get('tf_efsgd', 'of an earlier version')
    private = bool(statement.get('private'))
    how = f'{"under" if private else "WITHOUT"} differential privacy'
    evenly = {'released': 'as often as the released noisy class counts say'}
    how_often = evenly.get(about['balance'], 'equally often for each class')
    not_covered = ''.join(f'- {line}\n' for line in statement.get('not_covered') or [])
    source = statement.get('dataset', 'images')
    return f"""---
license: other
license_name: not-chosen-yet
pretty_name: {json.dumps(f'Synthetic images after {source}')}
task_categories:
- image-classification
task_ids: []
size_categories:
- {_size_category(about['count'])}
tags:
- synthetic
{'- differential-privacy' if private else '- not-private'}
---

# Synthetic images after {_line(source)}

{about['count']:,} generated images, {height}x{width}, {'gray' if channels == 1 else 'RGB'}, in
{len(about['class_names'])} classes. No image in this folder is a photograph or a scan: a generator
drew all of them.

**{guarantee(statement)}**

`PRIVACY.html` says what that means, and `privacy_statement.json` how it was computed.
`tf-efsgd verify` on this folder compares files, checksums and statement with each other;
`sha256sum -c SHA256SUMS` checks the files alone.

## Load

`OUT` is this folder.

```python
{load}```

`labels.csv` has the label and the class of each image.

| label | class | images |
| --- | --- | --- |
{rows}

{_TO_FILL_IN if private else ''}## Motivation

The images replace records that may not be shared: for developing and testing programs, for
teaching, and for training first classifiers.

## How they were made

A generator was trained on the records {how}
(tf_efsgd {_line(str(program))}). It drew {about['count']:,} images, {how_often}, with seed
{about['seed']}.
Drawing uses nothing but the generator: no real image was compared with a generated one, so nothing
here says that no generated image looks like a real one. What is promised instead is the sentence in
bold above; `PRIVACY.html` explains it in words.
{learned}
## Limits

- Rare kinds of images within a class are missing or blurred, because the guarantee hides what one
  record alone shows.
- Faults and biases of the records are in the images, too. Labels are what the generator was asked
  for, not what somebody saw in the image.
- Do not use the images to make decisions about persons, nor to make a diagnosis.

## What the guarantee does not cover

{not_covered or 'See PRIVACY.html.'}"""


def croissant(
    about: Mapping[str, Any],
    statement: Mapping[str, Any],
    *,
    date: str,
    sha256_of_labels: str,
    files: Sequence[Mapping[str, str]] = (),
) -> str:
    """Writes the datasheet as Croissant 1.0 JSON-LD.

    Args:
      about: how the data set was generated, as in `generation.json`.
      statement: the privacy statement of the generator.
      date: today's date, ISO 8601.
      sha256_of_labels: checksum of labels.csv.
      files: name, sha256 and encoding of each file with images, if these are few.

    Returns:
      The text of croissant.json.
    """
    columns = {'file_name': 'sc:Text', 'label': 'sc:Integer', 'class': 'sc:Text'}
    fields = [
        {
            '@type': 'cr:Field',
            '@id': f'images/{name}',
            'name': name,
            'dataType': data_type,
            'source': {'fileObject': {'@id': file_names.LABELS}, 'extract': {'column': name}},
        }
        for name, data_type in columns.items()
    ]
    labels = {
        '@type': 'cr:FileObject',
        '@id': file_names.LABELS,
        'name': file_names.LABELS,
        'contentUrl': file_names.LABELS,
        'encodingFormat': 'text/csv',
        'sha256': sha256_of_labels,
    }
    objects = [
        {
            '@type': 'cr:FileObject',
            '@id': entry['name'],
            'name': entry['name'],
            'contentUrl': entry['name'],
            'encodingFormat': entry['encoding'],
            'sha256': entry['sha256'],
        }
        for entry in files
    ]
    if about['format'] == 'png':
        objects.append(
            {
                '@type': 'cr:FileSet',
                '@id': 'png-files',
                'name': 'png-files',
                'encodingFormat': 'image/png',
                'includes': '*/*.png',
            }
        )
    return (
        json.dumps(
            {
                '@context': _CONTEXT,
                '@type': 'sc:Dataset',
                'conformsTo': 'http://mlcommons.org/croissant/1.0',
                'name': about['name'],
                'description': f'Synthetic images. {guarantee(statement)}',
                'datePublished': date,
                'version': '1.0.0',
                # Croissant requires both. Nobody knows a licence or an address on the Web yet; the
                # README says how to give them.
                'license': {'@type': 'sc:CreativeWork', 'name': _NO_LICENCE},
                'url': file_names.README,
                'citation': 'Ma and Zhang 2026, https://arxiv.org/abs/2601.15061',
                'creator': {'@type': 'sc:Organization', 'name': 'tf_efsgd'},
                'rai:dataCollection': 'generated by a differentially private generator'
                if statement.get('private')
                else 'generated by a generator without a guarantee of differential privacy',
                'distribution': [labels, *objects],
                'recordSet': [
                    {
                        '@type': 'cr:RecordSet',
                        '@id': 'images',
                        'name': 'images',
                        'description': 'label and class of each image',
                        'field': fields,
                    }
                ],
            },
            indent=2,
        )
        + '\n'
    )


def _size_category(count: int) -> str:
    """Returns the size as Hugging Face writes it: n<1K, 1K<n<10K, ..."""
    steps = {'n<1K': 10**3, '1K<n<10K': 10**4, '10K<n<100K': 10**5, '100K<n<1M': 10**6}
    return next((name for name, most in steps.items() if count < most), '1M<n<10M')


def _line(text: str) -> str:
    """Returns one line of plain Markdown, whatever the text contains."""
    text = text.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')
    return ' '.join(text.replace('`', "'").replace('<', '(').replace('>', ')').split())


def _cell(text: str) -> str:
    return _line(text).replace('|', '/')
