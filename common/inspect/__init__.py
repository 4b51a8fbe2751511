"""Commands that inspect a configuration, a machine or a model and change nothing."""
