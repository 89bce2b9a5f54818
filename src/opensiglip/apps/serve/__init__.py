"""A trained model behind an HTTP API: OpenAI's embeddings, and labels, boxes and captions in its manner."""
