"""What others can use: artifacts in the layouts of the paper's releases."""
