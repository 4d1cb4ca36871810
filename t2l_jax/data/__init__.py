"""Tasks and what training reads of them: task folders, the procedural family, prompts, batches."""
