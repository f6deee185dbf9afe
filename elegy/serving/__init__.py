"""Answers predictions over HTTP, for a quick try: `elegy serve`."""
