"""Public fitting, and the steps around the private one."""
