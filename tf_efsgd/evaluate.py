"""Measures a run against real images: python -m tf_efsgd.evaluate."""

from tf_efsgd.cli.evaluate import main

if __name__ == '__main__':
    main()
