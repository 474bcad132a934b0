"""Plans: segments and the order between them. Knows no tokenizer."""
