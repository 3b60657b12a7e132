"""Trains a differentially private generator: python -m tf_efsgd.launch --flagfile=mnist.flags."""

from tf_efsgd.cli.train import main

if __name__ == '__main__':
    main()
