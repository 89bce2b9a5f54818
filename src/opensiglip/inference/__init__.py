"""What a trained model is asked: embeddings, texts, boxes."""
