"""The kinds of examples."""

IMAGES, TEXT = 'images', 'text'
