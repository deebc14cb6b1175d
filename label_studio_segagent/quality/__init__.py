"""Quality control of submitted masks: scores, named issues, write-back, export."""
