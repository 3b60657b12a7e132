"""Times the steps and compares their memory, on this machine: python -m tf_efsgd.benchmark."""

from tf_efsgd.cli.bench import main

if __name__ == '__main__':
    main()
