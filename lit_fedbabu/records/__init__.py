"""What a run leaves: its folder, results, TensorBoard files and model cards."""
