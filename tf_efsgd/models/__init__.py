"""Networks, losses and the GAN that trains them."""
