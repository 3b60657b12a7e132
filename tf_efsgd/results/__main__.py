"""Runs a grid and writes its table: python -m tf_efsgd.results --grid=main."""

from tf_efsgd.cli.results import main

if __name__ == '__main__':
    main()
