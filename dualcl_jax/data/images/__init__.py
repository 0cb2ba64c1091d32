"""Images: folders, .npz files and TFDS sets, how they are decoded, and how the host cuts crops."""
