"""How good generated images are: images against images, without knowing any run."""
