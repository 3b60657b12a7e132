"""The networks of a GAN, their losses, and a frozen public network."""
