"""Views: random augmentations on the device."""
