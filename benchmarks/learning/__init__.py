"""How well the fusion weights are learned, in worlds whose truth is known, beside other methods."""
