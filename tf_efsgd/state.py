"""Lists what is remembered outside run folders: python -m tf_efsgd.state."""

from tf_efsgd.cli.state import main

if __name__ == '__main__':
    main()
