"""Compares the account with what an attack can prove: python -m tf_efsgd.audit."""

from tf_efsgd.cli.audit import main

if __name__ == '__main__':
    main()
