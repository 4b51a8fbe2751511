"""One image of a user to an answer."""
