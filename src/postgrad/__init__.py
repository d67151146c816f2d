"""postgrad: the whole post-training loop, from a base model to a released assistant and back."""

__version__ = "0.1.0"
__all__ = ["__version__"]
