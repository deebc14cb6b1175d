"""HLMAT in miniature: generated scenes, a language model with eyes small enough to train here, the paper's tables."""
