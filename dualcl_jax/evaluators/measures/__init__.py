"""The measures of the protocols, as functions of arrays."""
