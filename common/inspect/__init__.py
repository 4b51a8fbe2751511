"""Commands that look at a configuration or a machine and change nothing."""
