"""Tasks and what training reads of them: task folders, the word tasks, prompts, batches."""
