"""Parts shared by the demo scripts."""
