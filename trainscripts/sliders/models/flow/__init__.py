"""What families share whose model is a rectified flow, predicted by a transformer that reads prompts through Qwen3."""
