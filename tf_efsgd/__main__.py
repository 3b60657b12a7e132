"""The console command: python -m tf_efsgd COMMAND."""

from tf_efsgd.cli.main import main

if __name__ == '__main__':
    main()
