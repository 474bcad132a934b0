"""A pretrained decoder as a multi-stream model: attention, stream vectors, vocabulary, loss."""
