"""The base model and its adapters as a server that speaks OpenAI's protocol."""
