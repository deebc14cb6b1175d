"""What holds where nobody says otherwise: option, setting and library call read the same constant.

A default that is needed in one place alone stays there.
"""

from __future__ import annotations

__all__ = [
    "ANNOTATOR_STOP_IOU", "ANSWERS_IN_A_STEP", "BATCH_SIZE", "BEAM", "CANDIDATES", "CONCURRENT_REQUESTS",
    "EMBEDDING_CACHE_BYTES", "FIT_MINUTES", "LEAST_GAIN", "MAX_CLICKS", "MAX_INSTANCES", "MODEL_PIXELS",
    "POLICY_MINUTES", "PREDICT_SECONDS", "REQUEST_SECONDS", "SCORE_KEPT", "SEGMENTER_MINUTES", "SPOILED_STARTS",
    "STAR_ROUNDS", "STOP_IOU", "TRAJECTORY_MINUTES",
]  # fmt: skip

# The agent, and the simulated annotator.
MAX_CLICKS = 7
"""Clicks for an object."""
CANDIDATES = 1
"""Clicks tried at every step; 1 is greedy."""
BEAM = 1
"""Masks that a search with several candidates goes on from."""
STOP_IOU = 0.95
"""Predicted IoU at which the agent is content."""
ANNOTATOR_STOP_IOU = 0.98
"""True IoU at which the simulated annotator is content (tau_stop), as in SegAgent's released code."""
LEAST_GAIN = 0.15
"""Smallest rise of the policy's rating for which a region is replaced by its refinement."""
SCORE_KEPT = 0.8
"""Smallest quality score of a region that is good enough."""

# Serving.
BATCH_SIZE = 16
"""Tasks whose rollouts run in lockstep."""
PREDICT_SECONDS = 80.0
"""Time for a batch of tasks."""
MAX_INSTANCES = 50
"""Objects of one label in one image."""
EMBEDDING_CACHE_BYTES = 2**30
"""Memory for encoded images."""
MODEL_PIXELS = 2**20
"""Larger images are shrunk to this many pixels before a language model sees them."""
CONCURRENT_REQUESTS = 8
"""Requests to a model's endpoint at once."""
REQUEST_SECONDS = 60.0
"""Time for one answer of a model's endpoint."""

# Training.
FIT_MINUTES = 60.0
"""Time budget of fine-tuning a model."""
SEGMENTER_MINUTES = 240.0
"""Time budget of the embedded segmenter."""
POLICY_MINUTES = 60.0
"""Time budget of the embedded policy."""
TRAJECTORY_MINUTES = 15.0
"""Time to make the embedded policy's trajectories, at most."""
SPOILED_STARTS = 1
"""Trajectories of an object from a corrupted mask, and single steps from one."""
STAR_ROUNDS = 2
"""Rounds of StaR+ after the first training."""
ANSWERS_IN_A_STEP = 16
"""Answers of a language model that make an optimizer step."""
