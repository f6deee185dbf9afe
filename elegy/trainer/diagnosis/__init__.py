"""What a step costs, what is wrong with it, and which settings suit it."""
