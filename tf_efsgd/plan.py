"""Says what a run will spend, and what a ledger has spent: python -m tf_efsgd.plan."""

from tf_efsgd.cli.plan import main

if __name__ == '__main__':
    main()
