"""The user's own records as files that a task reads; imports common and data, and reaches a task by its name only."""
