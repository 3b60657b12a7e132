"""The groups of settings, one file each: every setting is one field, written once."""
