"""What the stages share: poems, prosody, models, training, generation, scoring."""
