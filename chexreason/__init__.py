"""ChexReason: reasoning chest X-ray models from SFT to GRPO to another hospital, as a reproducible study."""

__version__ = "0.1.0"
