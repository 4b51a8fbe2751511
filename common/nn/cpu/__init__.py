"""What makes the model faster on CPUs. Delete it, and only the time changes."""
