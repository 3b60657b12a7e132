"""The commands, one file each; they do no work of their own."""
