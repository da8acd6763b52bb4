"""Whether a bundle is still the same model."""
