"""What labelers and leads open in a browser, and the API under it."""
