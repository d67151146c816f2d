"""Renderer tests share the chat formats of `chat_styles`."""
